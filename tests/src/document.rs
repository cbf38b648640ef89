//! The project's documents, as tests read them: their fenced blocks and the rows of their tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A document.
#[derive(Debug)]
pub struct Document {
    /// Its path below the repository's root.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'d> {
    /// What it is said to be: `sh`, `console`, `yaml`.
    pub language: &'d str,
    /// What is in it.
    pub text: &'d str,
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a directory of the repository")
}

impl Document {
    /// Reads the document at `path` below the root.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &str) -> Result<Self> {
        let text =
            std::fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))?;
        Ok(Self { path: path.into(), text })
    }

    /// Its fenced blocks, in order.
    pub fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut rest = self.text.as_str();
        while let Some((_, after)) = rest.split_once("\n```") {
            let Some((language, body)) = after.split_once('\n') else { break };
            // A block may be empty: its end is then its first line.
            let Some(end) = body.find("```").filter(|end| *end == 0 || body[..*end].ends_with('\n')) else {
                break;
            };
            blocks.push(Block { language: language.trim(), text: &body[..end] });
            rest = &body[end + 3..];
        }
        blocks
    }

    /// The command lines of its blocks of shell: without prompts, comments and what they print.
    pub fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        for block in self.blocks() {
            let prompt = match block.language {
                "sh" => "",
                "console" => "$ ",
                _ => continue,
            };
            let lines = block.text.lines().filter_map(|line| line.strip_prefix(prompt));
            commands.extend(lines.map(without_comment).filter(|line| !line.is_empty()).map(str::to_owned));
        }
        commands
    }

    /// The first cells of the rows of the table below the heading `heading`.
    pub fn first_cells(&self, heading: &str) -> Vec<String> {
        let below = self.text.split_once(&format!("\n{heading}\n")).map_or("", |(_, below)| below);
        let section = below.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
        rows.filter_map(|row| row.split(" | ").next()).map(|cell| cell[1..].trim().to_owned()).collect()
    }
}

fn without_comment(line: &str) -> &str {
    let line = line.split_once(" #").map_or(line, |(command, _)| command).trim();
    if line.starts_with('#') { "" } else { line }
}

#[cfg(test)]
mod tests {
    use super::{Block, Document, root};

    fn document(text: &str) -> Document {
        Document { path: "test.md".into(), text: text.to_owned() }
    }

    #[test]
    fn blocks_and_commands_are_found() {
        let document = document(
            "# T\n\n```sh\n# first\nmake x    # why\n\nls -l\n```\ntext\n```console\n$ blixard ps\nID\n```\n```\nplain\n```\n",
        );
        let languages: Vec<&str> = document.blocks().iter().map(|block| block.language).collect();
        assert_eq!(languages, ["sh", "console", ""]);
        assert_eq!(document.blocks()[2], Block { language: "", text: "plain\n" });
        assert_eq!(document.commands(), ["make x", "ls -l", "blixard ps"]);
    }

    #[test]
    fn a_table_has_first_cells() {
        let document =
            document("\n## A\n\n| m | w |\n|---|---|\n| `x` | y |\n| `z`, `w` | v |\n\n## B\n\n| q | r |\n");
        assert_eq!(document.first_cells("## A"), ["`x`", "`z`, `w`"]);
    }

    /// What the messages of the troubleshooting table have in common with the code that says them:
    /// the longest piece of each that is no example.
    fn said(message: &str) -> Vec<String> {
        // Examples, and what is put together of several texts.
        const PARTS: [&str; 11] = [
            "...",
            "disk==ssd",
            " and node",
            "raft.wal",
            "node.redb",
            "/sys/fs/cgroup",
            "/tcp",
            " service",
            ": ",
            "; ",
            "\"latest\"",
        ];
        let plain: String = message.chars().map(|c| if c.is_ascii_digit() { '\0' } else { c }).collect();
        let plain = PARTS.iter().fold(plain, |plain, part| plain.replace(part, "\0"));
        let pieces = plain.split(['\0', '`']).map(|piece| piece.trim_matches([' ', ',', ';', '/', '(', ')']));
        pieces.max_by_key(|piece| piece.len()).map(str::to_owned).into_iter().collect()
    }

    #[test]
    fn every_message_of_the_troubleshooting_table_is_in_the_code() {
        let mut code = String::new();
        for name in ["blixard-core", "blixard-node", "blixard-cli"] {
            collect(&root().join(name).join("src"), &mut code);
        }
        // A text that goes on in the next line of the source is one text.
        let code: String = code.split("\\\n").map(str::trim_start).collect();
        let code = code.replace("\\\"", "\"");
        let operating = Document::read("docs/operating.md").unwrap();
        let cells = operating.first_cells("## Troubleshooting by message");
        assert!(cells.len() > 20, "{cells:?}");
        for cell in cells {
            for message in messages(&cell) {
                for piece in said(&message) {
                    assert!(piece.len() >= 8, "`{message}` has nothing of its own: `{piece}`");
                    assert!(code.contains(&piece), "nothing says `{piece}` of `{message}`");
                }
            }
        }
    }

    /// The messages of a cell: each in backticks, doubled where it holds some.
    fn messages(cell: &str) -> Vec<String> {
        let fence = if cell.starts_with("``") { "``" } else { "`" };
        let parts = cell.split(fence).skip(1).step_by(2);
        parts.map(|message| message.trim().to_owned()).filter(|message| message.contains(' ')).collect()
    }

    fn collect(directory: &std::path::Path, code: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, code);
            } else if path.extension().is_some_and(|end| end == "rs") {
                code.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
}
