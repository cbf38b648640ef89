//! Tables: columns as wide as their widest cell, three spaces apart, nothing at the line's end.

use super::color::{Paint, Style};

/// What separates two columns.
const GAP: usize = 3;

/// A table being filled.
pub(crate) struct Table {
    paint: Paint,
    rows: Vec<Vec<(String, Option<Style>)>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str], paint: Paint) -> Self {
        let headings = headings.iter().map(|heading| ((*heading).to_owned(), Some(Style::Bold)));
        Self { paint, rows: vec![headings.collect()] }
    }

    /// Adds a row of plain cells.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| (cell, None)).collect());
    }

    /// Paints a cell of the row added last.
    pub(crate) fn style(&mut self, column: usize, style: Option<Style>) {
        if let Some((_, cell_style)) = self.rows.last_mut().and_then(|row| row.get_mut(column)) {
            *cell_style = style;
        }
    }

    /// The table as lines.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(width).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.iter().rposition(|(cell, _)| !cell.is_empty());
            for (column, cell) in row.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
                match cell.1 {
                    Some(style) => text.push_str(&self.paint.apply(style, &cell.0)),
                    None => text.push_str(&cell.0),
                }
                if Some(column) != last {
                    let padding = widths[column] - width(cell) + GAP;
                    text.extend(std::iter::repeat_n(' ', padding));
                }
            }
            text.push('\n');
        }
        text
    }
}

fn width((cell, _): &(String, Option<Style>)) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::{Paint, Style, Table};

    #[test]
    fn columns_align_whatever_is_painted() {
        let mut table = Table::new(&["NAME", "STATUS", "PORTS"], Paint::Plain);
        table.row(["web-0".into(), "Up".into(), String::new()]);
        table.style(1, Some(Style::Green));
        table.row(["a-long-name-0".into(), "Pending".into(), "80/tcp".into()]);
        assert_eq!(
            table.render(),
            "NAME            STATUS    PORTS\nweb-0           Up\na-long-name-0   Pending   80/tcp\n"
        );
        table.paint = Paint::Colored;
        let plain: String = table
            .render()
            .split("\x1b[")
            .map(|part| part.split_once('m').map_or(part, |(_, rest)| rest))
            .collect();
        assert_eq!(plain, {
            table.paint = Paint::Plain;
            table.render()
        });
    }
}
