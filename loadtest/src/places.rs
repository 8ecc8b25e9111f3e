//! The commands a connection has in flight. Never more than the server allows; correlations are places in a table, so a
//! reply finds its command by index.

/// A command without its reply yet.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Which of the sender's messages.
    pub counter: u32,
    /// How often it was sent before.
    pub repetitions: u16,
    /// When it was due.
    pub intended_ns: u64,
}

/// The table.
#[derive(Debug)]
pub struct Places {
    places_max: usize,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u16>,
}

impl Places {
    /// For a server that allows so many commands in flight; one place stays free, for a ping.
    pub fn new(in_flight_max: u32) -> Self {
        Self { places_max: in_flight_max.clamp(2, 65_000) as usize - 1, in_flight: Vec::new(), free: Vec::new() }
    }

    /// Takes a place for a command; `None` if the server allows no more. The correlation names the place.
    pub fn issue(&mut self, command: InFlight) -> Option<u16> {
        if let Some(place) = self.free.pop() {
            self.in_flight[usize::from(place)] = Some(command);
            return Some(place + 1);
        }
        if self.in_flight.len() >= self.places_max {
            return None;
        }
        self.in_flight.push(Some(command));
        Some(u16::try_from(self.in_flight.len()).expect("places_max is below 65,000"))
    }

    /// The command a reply belongs to; its place is free again. `None`: nothing of that correlation is in flight.
    pub fn answered(&mut self, correlation: u16) -> Option<InFlight> {
        let place = correlation.checked_sub(1)?;
        let command = self.in_flight.get_mut(usize::from(place))?.take()?;
        self.free.push(place);
        Some(command)
    }

    /// Commands without a reply.
    pub fn in_flight(&self) -> u64 {
        (self.in_flight.len() - self.free.len()) as u64
    }

    /// True if a command could be issued.
    pub fn has_place(&self) -> bool {
        !self.free.is_empty() || self.in_flight.len() < self.places_max
    }
}
