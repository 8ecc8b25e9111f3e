//! Masking (RFC 6455, section 5.3): XOR with four repeated bytes. Doing it twice undoes it.

/// Masks or unmasks a whole payload in place, eight bytes at a time wherever it begins in memory; the compiler widens the
/// loop to the machine's vectors.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    // Native order on both sides, so that the bytes stay where they are on any machine.
    let wide_mask = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide_mask).to_ne_bytes();
    }
    for (byte, mask_byte) in tail.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask_byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_agrees_with_the_definition() {
        let mask = [0x37, 0xFA, 0x21, 0x3D];
        let plain: Vec<u8> = (0..200u8).collect();
        for start in 0..16 {
            for end in start..plain.len() {
                let mut fast = plain.clone();
                apply_mask(&mut fast[start..end], mask);
                for (index, byte) in plain[start..end].iter().enumerate() {
                    assert_eq!(fast[start + index], byte ^ mask[index % 4]);
                }
                assert_eq!((&fast[..start], &fast[end..]), (&plain[..start], &plain[end..]));
            }
        }
    }
}
