//! What a disk that lies does to a file; for tests.

use crate::platform::RandomSource;

const PAGE: usize = 4096;

/// Flips bits, cuts the end off or zeroes something.
pub(crate) fn damage(bytes: &mut Vec<u8>, random: &dyn RandomSource) -> String {
    let below = |bound: usize| usize::try_from(random.next_u64() % bound.max(1) as u64).expect("a length");
    // Half of them where something is, the other half anywhere.
    let end = if below(2) == 0 { bytes.len() } else { bytes.len().min(16 * PAGE) };
    match below(10) {
        0..=5 => {
            let flips: Vec<_> = (0..=below(4)).map(|_| (below(end), below(8))).collect();
            flips.iter().for_each(|(at, bit)| bytes[*at] ^= 1 << bit);
            format!("bits {flips:?} are flipped")
        }
        6 => {
            let len = below(end);
            bytes.truncate(len);
            format!("it ends at {len}")
        }
        kind => {
            let size = [PAGE, 512, 16][kind - 7];
            let from = below(end / size) * size;
            let to = (from + size * (1 + below(3))).min(bytes.len());
            bytes[from..to].fill(0);
            format!("{from}..{to} is zeroed")
        }
    }
}
