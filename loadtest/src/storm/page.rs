//! The report as one HTML file that needs nothing else: verdict, conditions, plots, tables. Light or dark as the reader
//! has it.
//!
//! In: a report and its storm; out: the page.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use super::plot::{Axis, Band, Line, Plot, Scale, escape, text};
use super::result::StormResult;
use super::rows::{GEARS, SecondRow};
use super::verdict::{Holds, visible_bound_ms};
use crate::report::{Report, ScenarioResult, Verdict, mib};

const STYLE: &str = include_str!("page.css");

/// Writes the page of the report's storm.
///
/// # Errors
/// If the file cannot be written.
pub fn write_page(report: &Report, path: &Path) -> anyhow::Result<()> {
    let storms = report.results.iter().filter_map(|result| match result {
        ScenarioResult::Storm(result) => Some(result),
        _ => None,
    });
    for result in storms {
        std::fs::write(path, page(report, result)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn page(report: &Report, result: &StormResult) -> String {
    let word = result.verdict.word();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Lobby storm: {word}</title>\
         <style>{STYLE}</style></head><body>\n"
    );
    head(&mut out, report, result);
    for section in [
        rate(result),
        visible(result),
        live_share(result),
        percentiles(result),
        bytes(result),
        server(result),
        generator(result),
    ] {
        out.push_str(&section);
    }
    out.push_str(&slices(result));
    out.push_str(&summary(result));
    out.push_str("</body></html>\n");
    out
}

fn head(out: &mut String, report: &Report, result: &StormResult) {
    let options = &result.parameters;
    let class = match result.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Void | Verdict::Interrupted => "void",
    };
    let word = result.verdict.word();
    let (from, to) = (text(options.rate_from), text(options.rate_to));
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<header><h1>Lobby storm <b class=\"{class}\">{word}</b></h1><p>{} watchers of one lobby, {} of them write; \
         {from} to {to} to {from} messages/s within {} s. Frames over {}, pulls {}.</p>",
        text(f64::from(options.connections)),
        text(f64::from(options.senders)),
        text(options.duration.as_secs_f64()),
        match options.transport {
            super::options::Transport::Tcp => "TCP",
            super::options::Transport::Websocket => "WebSocket",
        },
        match options.pull {
            super::options::PullOver::Connection => "in the watcher's own connection",
            super::options::PullOver::Http => "over HTTP",
        },
    );
    out.push_str("<table class=\"conditions\">");
    for condition in &result.conditions {
        let (class, word) = match condition.holds {
            Holds::Yes => ("pass", "pass"),
            Holds::No => ("fail", "FAIL"),
            Holds::Void => ("void", "void"),
            Holds::Unmeasured => ("void", "not measured"),
        };
        let _ = write!(
            out,
            "<tr><td><b class=\"{class}\">{word}</b></td><td>{}<br><small>{}</small></td></tr>",
            escape(&condition.name),
            escape(&condition.measured)
        );
    }
    out.push_str("</table>");
    if !result.reasons.is_empty() {
        let reasons: String = result.reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
        let _ = write!(out, "<ul class=\"reasons\">{reasons}</ul>");
    }
    let host = &report.host;
    let _ = write!(
        out,
        "<dl><dt>command</dt><dd><code>{}</code></dd><dt>commit</dt><dd><code>{}</code>, version {}</dd>\
         <dt>host</dt><dd>{} cores, {}, {:.0} MiB, Linux {}; server and generator share it if the server is local</dd>\
         <dt>backend</dt><dd>{}</dd><dt>ended</dt><dd>{}</dd></dl></header>",
        escape(&result.command),
        escape(report.commit.as_deref().unwrap_or("unknown")),
        report.version,
        host.cores,
        escape(&host.cpu_model),
        mib(host.memory_bytes),
        escape(&host.kernel),
        escape(report.backend.as_deref().unwrap_or("embedded, or as the running gateway has it")),
        utc(report.ended_at_s),
    );
}

/// Seconds since 1970 as people write them.
fn utc(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, of_day / 3_600, of_day / 60 % 60)
}

// ---- plots

/// A section: its title, what there is to see, its plots with their legends.
fn section(title: &str, what: &str, plots: &[(&str, Plot)]) -> String {
    let mut out = format!("<section><h2>{title}</h2><p>{}</p>", escape(what));
    for (name, plot) in plots {
        if !name.is_empty() {
            let _ = write!(out, "<h3>{name}</h3>");
        }
        out.push_str(&plot.svg());
        out.push_str(&plot.legend());
    }
    let has_bands = plots.iter().any(|(_, plot)| !plot.bands.is_empty());
    if has_bands {
        let gears: String =
            (0..3).map(|gear| format!("<li><i class=\"g{gear}\"></i>{} gear</li>", GEARS[gear])).collect();
        let _ = write!(out, "<ul class=\"legend\">{gears}</ul>");
    }
    out + "</section>\n"
}

/// A plot over the seconds of the run, from zero.
fn over_time(result: &StormResult, label: &'static str, lines: Vec<Line>, bound: Option<(f64, String)>) -> Plot {
    let values = lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
    let highest = values.chain(bound.iter().map(|(value, _)| *value)).fold(0.0, f64::max);
    Plot {
        x: time_axis(result),
        y: Axis { label, scale: Scale::Linear, from: 0.0, to: if highest > 0.0 { highest * 1.1 } else { 1.0 } },
        lines,
        bound,
        bands: bands(result),
    }
}

fn time_axis(result: &StormResult) -> Axis {
    Axis { label: "seconds since the start", scale: Scale::Linear, from: 0.0, to: result.seconds.len().max(1) as f64 }
}

/// The gears as the first watcher was told them.
fn bands(result: &StormResult) -> Vec<Band> {
    let mut shifts = vec![(0.0, 0)];
    shifts.extend(result.shifts.iter().map(|shift| (shift.at_s, usize::try_from(shift.gear).unwrap_or(0).min(2))));
    let ends = shifts.iter().skip(1).map(|(at_s, _)| *at_s).chain([result.seconds.len() as f64]);
    shifts.iter().zip(ends).map(|((from, gear), to)| Band { from: *from, to, gear: *gear }).collect()
}

/// A line of one figure per second, in the middle of it.
fn line(result: &StormResult, name: &str, colour: usize, figure: impl Fn(&SecondRow) -> Option<f64>) -> Line {
    let points = result.seconds.iter().map(|row| (row.at_s as f64 + 0.5, figure(row))).collect();
    Line { name: name.to_owned(), colour, points }
}

fn rate(result: &StormResult) -> String {
    let lines = vec![
        line(result, "offered (due)", 0, |row| Some(row.offered as f64)),
        line(result, "accepted (acknowledged)", 1, |row| Some(row.accepted as f64)),
    ];
    let highest = result.seconds.iter().map(|row| row.offered.max(row.accepted)).max().unwrap_or(1);
    let plot = Plot {
        x: time_axis(result),
        y: Axis { label: "messages/s (log)", scale: Scale::Log, from: 0.8, to: (highest.max(2) as f64) * 1.5 },
        lines,
        bound: None,
        bands: bands(result),
    };
    let what = "What the ramp wanted and what the server acknowledged, by second; behind it the gear the lobby was in.";
    section("Rate and gear", what, &[("", plot)])
}

fn visible(result: &StormResult) -> String {
    let bound_ms = visible_bound_ms(result.settings);
    let lines = vec![
        line(result, "p50 from accepted", 0, |row| row.accepted_to_shown.p50_ms),
        line(result, "p99 from accepted", 1, |row| row.accepted_to_shown.p99_ms),
        line(result, "p99 from due", 2, |row| row.due_to_shown.p99_ms),
        line(result, "p99 of acks, from due", 3, |row| row.ack.p99_ms),
    ];
    let bound = Some((bound_ms, format!("bound {} ms", text(bound_ms))));
    let what = "Until a live push or pull shows a message to a watcher, over all watchers, by the second in which the \
                message was due. The bound holds for p99 from accepted, in each slice of the run.";
    section("From accepted to visible", what, &[("", over_time(result, "milliseconds", lines, bound))])
}

fn live_share(result: &StormResult) -> String {
    let lines = vec![line(result, "shown live", 0, |row| row.live_share.map(|share| share * 100.0))];
    let plot = over_time(result, "% of watchers", lines, Some((100.0, "everything".to_owned())));
    let what = "Of the messages due in a second, the share that watchers were shown live. What a reader's share of the \
                line does not hold is left out in signal gear, and filled when the storm is over.";
    section("Shown live", what, &[("", plot)])
}

fn percentiles(result: &StormResult) -> String {
    let bound_ms = visible_bound_ms(result.settings);
    let lines: Vec<Line> = (0..)
        .zip(&result.percentiles)
        .map(|(colour, line)| Line {
            name: line.name.clone(),
            colour,
            points: line.points.iter().map(|(quantile, ms)| (*quantile, Some(*ms))).collect(),
        })
        .collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    let quantile_max = points().map(|(quantile, _)| *quantile).fold(0.9, f64::max);
    let ms_max = points().filter_map(|(_, ms)| *ms).fold(bound_ms, f64::max);
    let plot = Plot {
        x: Axis { label: "percentile", scale: Scale::Nines, from: 0.0, to: quantile_max },
        y: Axis { label: "milliseconds", scale: Scale::Linear, from: 0.0, to: ms_max * 1.1 },
        lines,
        bound: Some((bound_ms, format!("bound {} ms", text(bound_ms)))),
        bands: Vec::new(),
    };
    let what = "The whole run: each (watcher, message) pair that was shown live, by the gear it was shown in.";
    section("Percentiles", what, &[("", plot)])
}

fn bytes(result: &StormResult) -> String {
    let cap = result.settings.watcher_bytes_per_s as f64;
    let lines = vec![
        line(result, "all watchers, mean", 0, |row| Some(row.bytes_per_watcher)),
        line(result, "watchers in signal gear, mean", 1, |row| row.signal_bytes_mean),
        line(result, "watchers in signal gear, highest", 2, |row| row.signal_bytes_max.map(|bytes| bytes as f64)),
    ];
    let plot = over_time(result, "bytes/s", lines, Some((cap, format!("cap {} bytes/s", text(cap)))));
    let what = "Received as a watcher: everything but the answers to one's own messages. The cap holds for each \
                watcher's mean over its whole seconds in signal gear; a single second may hold one pull more.";
    section("Bytes per watcher", what, &[("", plot)])
}

fn server(result: &StormResult) -> String {
    if result.server.is_none() {
        return section("Server", "Its process is not known: --start-gateway or --server-pid tell it.", &[]);
    }
    let cores = vec![line(result, "CPU", 0, |row| row.server.map(|server| server.cores))];
    let memory = vec![line(result, "resident memory", 1, |row| row.server.map(|server| mib(server.rss_bytes)))];
    let plots = [("CPU", over_time(result, "cores", cores, None)), ("Memory", over_time(result, "MiB", memory, None))];
    section("Server", "Its process, second by second.", &plots)
}

fn generator(result: &StormResult) -> String {
    let cores = vec![
        line(result, "all threads", 0, |row| Some(row.generator_cores)),
        line(result, "busiest thread", 1, |row| Some(row.generator_busiest_cores)),
    ];
    let lateness = vec![line(result, "p99", 0, |row| row.lateness_p99_ms)];
    let plots = [
        ("CPU", over_time(result, "cores", cores, Some((1.0, "one core".to_owned())))),
        ("Lateness of sending", over_time(result, "milliseconds", lateness, Some((10.0, "void above".to_owned())))),
    ];
    let what = "Whether the generator itself was the bottleneck: a thread that needs a whole core, or messages that \
                leave late, make a result void.";
    section("Generator", what, &plots)
}

// ---- tables

fn ms(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.1}"))
}

fn slices(result: &StormResult) -> String {
    let bound_ms = visible_bound_ms(result.settings);
    let mut out = String::from(
        "<section><h2>Slices</h2><p>p99 is judged over these.</p><table class=\"figures\"><tr><th>seconds</th>\
         <th>gears</th><th>offered/s</th><th>accepted</th><th>shown live</th><th>p50, ms</th><th>p99, ms</th>\
         <th>p99.9, ms</th><th>from due p99, ms</th><th>generator's thread</th><th>lateness p99, ms</th></tr>",
    );
    for slice in &result.slices {
        let gears: Vec<&str> = slice.gears.iter().map(|gear| GEARS[*gear]).collect();
        let is_late = slice.accepted > 0 && slice.accepted_to_shown.p99_ms.is_none_or(|p99_ms| p99_ms > bound_ms);
        let _ = write!(
            out,
            "<tr><td>{}–{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td{}>{}</td><td>{}</td>\
             <td>{}</td><td>{:.2}</td><td>{}</td></tr>",
            slice.from_s,
            slice.to_s,
            gears.join(", "),
            text(slice.offered_per_s),
            text(slice.accepted as f64),
            slice.live_share.map_or("–".to_owned(), |share| format!("{:.1} %", share * 100.0)),
            ms(slice.accepted_to_shown.p50_ms),
            if is_late { " class=\"fail\"" } else { "" },
            ms(slice.accepted_to_shown.p99_ms),
            ms(slice.accepted_to_shown.p999_ms),
            ms(slice.due_to_shown.p99_ms),
            slice.generator_busiest_cores,
            ms(slice.lateness_p99_ms),
        );
    }
    out + "</table></section>\n"
}

fn summary(result: &StormResult) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let count = |value: u64| text(value as f64);
    let messages = &result.messages;
    rows.push((
        "messages",
        format!(
            "{} offered, {} accepted, {} refused, {} unanswered, {} never written; {} repeated, {} held back",
            count(messages.offered),
            count(messages.accepted),
            count(messages.refused),
            count(messages.unanswered),
            count(messages.never_written),
            count(result.whole.repeated),
            count(result.whole.held_back)
        ),
    ));
    rows.push((
        "watchers",
        format!("{} of {} equal the history", count(messages.watchers_equal), count(messages.watchers_judged)),
    ));
    let pairs = &result.pairs;
    rows.push((
        "(watcher, message) pairs",
        format!(
            "{} shown live, {:.1} % of all; {} by filling gaps in {:.1} s",
            count(pairs.shown),
            pairs.live_share * 100.0,
            count(pairs.filled),
            result.fill_s
        ),
    ));
    for gear in &result.gears {
        let times = &gear.accepted_to_shown;
        let [p50, p99, p999] = [times.p50_ms, times.p99_ms, times.p999_ms].map(ms);
        let name = ["direct gear", "merged gear", "signal gear"];
        let index = GEARS.iter().position(|name| *name == gear.gear).unwrap_or(0);
        rows.push((
            name[index],
            format!("{} s; {} shown; p50 {p50} ms, p99 {p99} ms, p99.9 {p999} ms", gear.seconds, count(times.count)),
        ));
    }
    if let Some(bytes) = &result.signal_bytes {
        let (mean, max) = (text(bytes.mean_per_s.round()), text(bytes.max_per_s.round()));
        let cap = count(result.settings.watcher_bytes_per_s);
        rows.push(("bytes per watcher in signal gear", format!("{mean} bytes/s on average, {max} at most; cap {cap}")));
    }
    let ack = &result.ack;
    rows.push(("ack", format!("p50 {} ms, p99 {} ms, max {} ms", ms(ack.p50_ms), ms(ack.p99_ms), ms(ack.max_ms))));
    let pulls = &result.pulls;
    rows.push((
        "pulls",
        format!(
            "{} for {} notices; {} slow-downs, {} behind; spread {} ms",
            count(pulls.asked),
            count(pulls.notices),
            count(pulls.slow_downs),
            count(pulls.behinds),
            result.settings.spread_ms
        ),
    ));
    if let Some(server) = &result.server {
        rows.push((
            "server",
            format!(
                "{:.1} s CPU, {:.2} cores at most; {:.0} MiB at the start, {:.0} connected, {:.0} at most in the ramp, \
                 {:.0} peak",
                server.cpu_s,
                server.cores_max,
                mib(server.rss_start_bytes),
                mib(server.rss_connected_bytes),
                mib(server.rss_ramp_max_bytes),
                mib(server.rss_peak_bytes)
            ),
        ));
    }
    let generator = &result.generator;
    rows.push((
        "generator",
        format!(
            "{:.1} s CPU; busiest thread {:.2} cores, {:.2} in its busiest second; {} ms late at p99; {} bodies taken \
             apart, {} recognised",
            generator.cpu_s,
            generator.busiest_thread_cores,
            generator.busiest_second_cores,
            ms(generator.lateness.p99_ms),
            count(pulls.bodies_distinct),
            count(pulls.bodies_recognised)
        ),
    ));
    if let Some(busy) = result.host_cores_busy {
        rows.push(("whole machine", format!("{busy:.2} cores busy during the ramp")));
    }
    let rows: String =
        rows.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>", escape(value))).collect();
    format!("<section><h2>Summary</h2><table class=\"summary\">{rows}</table></section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_people_do() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_827_640), "2000-02-29 12:34 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59 UTC");
    }
}
