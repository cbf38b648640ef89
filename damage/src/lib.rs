//! Damaged bytes, the same on every run: what decoders are given ([`survives`]), and what a disk that
//! lies gives back ([`file()`]). For tests and the simulation; nothing that runs in earnest uses it.

mod bounds;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bounds::Bounds;

/// Inputs for each decoder: a debug build takes most of them in less than a second.
const CASES: usize = 1_500;
/// So many inputs share one look at what they cost.
const CASES_TOGETHER: usize = 50;
/// No input grows past this, in bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// A refusal may quote what it refuses, each character of it escaped, and say no more than this beside.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
const PAGE: usize = 4096;

/// A stream of random numbers that its seed decides: `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and nobody iterates over it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 where the bound is.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len())]
    }
}

/// Gives a decoder its `seeds`, which are valid, and what becomes of them when bits flip, when they are
/// cut, spliced and repeated, when lengths and numbers grow, when they nest, and bytes that never were
/// valid. `decode` answers why it refuses, and checks itself what it accepts: that it encodes to what
/// reads back the same, for one.
///
/// # Panics
/// When `decode` panics, takes long, asks for memory by the gigabyte, or refuses a seed; when why it
/// refuses is not one line, could pass for something else on a terminal, or is far longer than the input.
pub fn survives(name: &str, seeds: &[Vec<u8>], decode: impl Fn(&[u8]) -> Result<(), String>) {
    for seed in seeds {
        let decoded = decode(seed);
        assert_eq!(decoded, Ok(()), "{name}: a seed is not valid: {:?}", String::from_utf8_lossy(seed));
    }
    let seed = name.bytes().fold(0, |seed: u64, byte| seed.rotate_left(7) ^ u64::from(byte));
    let mut random = Random::new(seed);
    for cases in (0..CASES).collect::<Vec<_>>().chunks(CASES_TOGETHER) {
        let bounds = Bounds::begin();
        for case in cases {
            let input = input(seeds, &mut random);
            if let Err(fault) = survives_one(&input, &decode) {
                panic!("{name}: case {case}, {:?} ({input:02x?}): {fault}", String::from_utf8_lossy(&input));
            }
        }
        bounds.passed().unwrap_or_else(|fault| panic!("{name}: one of cases {cases:?}: {fault}"));
    }
}

fn survives_one(input: &[u8], decode: &impl Fn(&[u8]) -> Result<(), String>) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| decode(input))) {
        Err(_) => Err("it panics".to_owned()),
        Ok(Err(refusal)) => judge(&refusal, input),
        Ok(Ok(())) => Ok(()),
    }
}

fn judge(refusal: &str, input: &[u8]) -> Result<(), String> {
    if refusal.is_empty() || refusal.contains(char::is_control) {
        return Err(format!("it is not refused in one line: {refusal:?}"));
    }
    if refusal.len() > REFUSAL_BYTES_MAX + 10 * input.len() {
        return Err(format!("it is refused in {} bytes", refusal.len()));
    }
    Ok(())
}

/// What numbers in text are replaced by.
const NUMBERS: [&str; 7] =
    ["-1", "0", "4294967296", "9223372036854775808", "18446744073709551616", "1e400", "00000000000000000007"];
/// What is put into text: what ends lines, paints terminals, leads out of directories, closes quotes.
const TEXTS: [&str; 14] = [
    "\n",
    "\r",
    "\0",
    "\t",
    "\u{1b}[31m",
    "\u{202e}",
    "../",
    "\"",
    "\\u0000",
    "\\ud800",
    "\\n",
    "%00",
    "é",
    ":",
];

/// One of `seeds`, damaged in a few ways.
pub fn input(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(11) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.byte(),
            2 => bytes.truncate(at),
            3 => {
                let other = &seeds[random.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
            4 => {
                let end = at + random.below(bytes.len() - at);
                let repeated = bytes[at..end].repeat(1 + random.below(4));
                bytes.splice(at..at, repeated);
            }
            // The longest lengths that MessagePack has: 32 bits, all set.
            5 if bytes.len() >= at + 5 => {
                bytes[at] = [0xc6, 0xdb, 0xdc, 0xdd, 0xdf][random.below(5)];
                bytes[at + 1..at + 5].fill(0xff);
            }
            // Lengths and numbers of others, in either byte order.
            6 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let end = bytes.len().min(at + width);
                let fill = [0, 0x7f, 0xff][random.below(3)];
                bytes[at..end].fill(fill);
            }
            // Depth: arrays of one, maps of one, and what opens a list in text.
            7 => {
                let opener = [0x91, 0x81, b'[', b'{', b'(', b'-'][random.below(6)];
                bytes.splice(at..at, vec![opener; random.below(20_000)]);
            }
            8 => {
                let from = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |digits| at + digits);
                let digits = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(from..from + digits, random.of(&NUMBERS).bytes());
            }
            9 => drop(bytes.splice(at..at, random.of(&TEXTS).bytes())),
            _ => bytes = (0..random.below(256)).map(|_| random.byte()).collect(),
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Damages a file as a disk does that lies: bits flip, the end is cut off, something becomes zeros. Says
/// what it did.
pub fn file(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    // Half of them where something is, the other half anywhere.
    let end = if random.below(2) == 0 { bytes.len() } else { bytes.len().min(16 * PAGE) };
    if end == 0 {
        return "nothing is there to be damaged".to_owned();
    }
    match random.below(10) {
        0..=5 => {
            let flips: Vec<_> = (0..=random.below(4)).map(|_| (random.below(end), random.below(8))).collect();
            flips.iter().for_each(|(at, bit)| bytes[*at] ^= 1 << bit);
            format!("bits {flips:?} are flipped")
        }
        6 => {
            let length = random.below(end);
            bytes.truncate(length);
            format!("it ends at {length}")
        }
        kind => {
            let size = [PAGE, 512, 16][kind - 7];
            let from = random.below(end / size) * size;
            let to = (from + size * (1 + random.below(3))).min(bytes.len());
            bytes[from..to].fill(0);
            format!("{from}..{to} is zeroed")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::{Random, file, input, survives};

    #[test]
    fn damage_is_the_same_on_every_run_and_of_every_kind() {
        let seeds = [b"{\"number\": 12, \"text\": \"a\"}".to_vec(), vec![0xda; 40]];
        let inputs = |seed| {
            let mut random = Random::new(seed);
            (0..2_000).map(|_| input(&seeds, &mut random)).collect::<Vec<_>>()
        };
        let first = inputs(1);
        assert_eq!(first, inputs(1));
        assert_ne!(first, inputs(2));
        let has = |part: &[u8]| first.iter().any(|bytes| bytes.windows(part.len()).any(|at| at == part));
        for part in [&b"[[[[[["[..], b"18446744073709551616", b"\x1b[31m", &[0xdb, 0xff, 0xff, 0xff, 0xff]] {
            assert!(has(part), "{part:x?}");
        }
        for length in [0, 1, 5, 100, 70_000] {
            let mut random = Random::new(3);
            (0..200).for_each(|_| drop(file(&mut vec![7; length], &mut random)));
        }
    }

    #[test]
    fn a_decoder_that_fails_is_caught() {
        let fails = |decode: fn(&[u8]) -> Result<(), String>| {
            catch_unwind(|| survives("decoder", &[b"seed seed 12".to_vec()], decode)).is_err()
        };
        assert!(!fails(|_| Ok(())));
        assert!(fails(|_| Err("even what is valid".to_owned())));
        assert!(fails(|bytes| bytes.starts_with(b"s").then_some(()).ok_or_else(|| panic!("unexpected"))));
        assert!(!fails(|bytes| bytes.starts_with(b"s").then_some(()).ok_or("refused".to_owned())));
        assert!(fails(|bytes| match String::from_utf8_lossy(bytes).into_owned() {
            text if text == "seed seed 12" => Ok(()),
            text => Err(text),
        }));
        assert!(fails(|bytes| if bytes == b"seed seed 12" { Ok(()) } else { Err("x".repeat(1 << 20)) }));
    }
}
