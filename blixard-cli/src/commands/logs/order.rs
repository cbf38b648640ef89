//! Prints several logs as one, by the time their lines were written, holding one piece of each.

use super::printer::Printer;
use super::{Log, Said};

/// Prints whole lines in the order they were begun, and gives the logs that had none.
pub(super) async fn in_order(
    logs: Vec<(String, Log)>,
    printer: &mut Printer,
) -> anyhow::Result<Vec<(String, Log)>> {
    let mut heads = Vec::new();
    let mut silent = Vec::new();
    for (source, (name, mut log)) in logs.into_iter().enumerate() {
        match next(source, &name, &mut log).await {
            Some(said) => heads.push((said, name, log)),
            None => silent.push((name, log)),
        }
    }
    while let Some(first) = first(&heads) {
        let (mut said, name, mut log) = heads.swap_remove(first);
        // To the end of the line, or of the two that a container may have begun on both streams.
        let mut begun = [false; 2];
        let head = loop {
            if let Ok(line) = &said.line
                && let Some(begun) = begun.get_mut(usize::from(line.stderr))
            {
                *begun = line.partial;
            }
            let source = said.source;
            printer.take(said)?;
            match next(source, &name, &mut log).await {
                Some(next) if begun.contains(&true) => said = next,
                head => break head,
            }
        };
        if let Some(said) = head {
            heads.push((said, name, log));
        }
    }
    Ok(silent)
}

/// The position of what was written first; errors come last.
fn first(heads: &[(Said, String, Log)]) -> Option<usize> {
    let at = |said: &Said| {
        let line = said.line.as_ref().ok().filter(|line| line.error.is_none());
        (line.is_none(), line.map(|line| line.at.clone()), said.source)
    };
    (0..heads.len()).min_by_key(|head| heads.get(*head).map(|(said, _, _)| at(said)))
}

async fn next(source: usize, name: &str, log: &mut Log) -> Option<Said> {
    let line = log.lines.next().await.transpose()?;
    Some(Said { source, name: name.to_owned(), line })
}
