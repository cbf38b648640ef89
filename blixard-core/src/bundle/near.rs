//! Which known word was meant by an unknown one.

/// The longest word that is compared.
const WORD_BYTES_MAX: usize = 64;

/// The one of `known` that `word` is most likely a slip of: the same but for case, `-` and `_`;
/// the beginning of it; or at most two letters off, one in words of up to four.
pub fn near<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let word = plain(word);
    let starts = |known: &str| word.len() >= 3 && (known.starts_with(&word) || word.starts_with(known));
    let allowed = if word.chars().count() <= 4 { 1 } else { 2 };
    known
        .iter()
        .map(|known| (plain(known), *known))
        .filter_map(|(plain, known)| {
            let steps = distance(&word, &plain);
            (steps <= allowed || starts(&plain)).then_some((steps, known))
        })
        .min_by_key(|(steps, _)| *steps)
        .map(|(_, known)| known)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour to make one
/// word of the other (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let differs = usize::from(from[i - 1] != to[j - 1]);
            let mut steps = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + differs);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                steps = steps.min(rows[i - 2][j - 2] + 1);
            }
            row.push(steps);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn slips_find_the_word_that_was_meant() {
        let known =
            ["docker_image", "command", "workdir", "restart_policy", "ports", "env_file", "min", "max"];
        let check = |word: &str, meant: Option<&str>| assert_eq!(near(word, &known), meant, "{word}");
        check("dockerImage", Some("docker_image"));
        check("docker-image", Some("docker_image"));
        check("comand", Some("command"));
        check("commnad", Some("command"));
        check("restart", Some("restart_policy"));
        check("port", Some("ports"));
        check("mim", Some("min"));
        check("maxx", Some("max"));
        check("labels", None);
        check("x", None);
        check("", None);
        check(&"a".repeat(100), None);
    }
}
