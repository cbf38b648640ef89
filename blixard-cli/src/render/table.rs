//! Tables: columns as wide as their widest cell, three spaces apart, nothing at the line's end.

use super::color::{Paint, Style};
use super::text::{printable, shorten};

/// What separates two columns.
const GAP: usize = 3;
/// How much of a shortened cell is left, however narrow the terminal is, in characters.
const ELASTIC_CHARS_MIN: usize = 12;

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
        self.rows.push(cells.into_iter().map(|cell| (printable(&cell), None)).collect());
    }

    /// Paints a cell of the row added last.
    pub(crate) fn style(&mut self, column: usize, style: Option<Style>) {
        if let Some((_, cell_style)) = self.rows.last_mut().and_then(|row| row.get_mut(column)) {
            *cell_style = style;
        }
    }

    /// The table as lines.
    pub(crate) fn render(&self) -> String {
        let widths = self.widths();
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

impl Table {
    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column| self.rows.iter().filter_map(move |row| row.get(column));
        (0..columns).map(|column| cells(column).map(width).max().unwrap_or(0)).collect()
    }

    /// The same table no wider than `columns_max`, so that no line wraps: it loses columns, those of
    /// `losable` in turn, and when that is not enough the cells of `elastic` are shortened.
    pub(crate) fn fit(mut self, columns_max: Option<usize>, losable: &[&str], elastic: &str) -> Self {
        let Some(columns_max) = columns_max else { return self };
        let excess = |table: &Self| {
            let widths = table.widths();
            let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            total.saturating_sub(columns_max)
        };
        let position = |table: &Self, heading: &str| {
            table.rows.first().and_then(|row| row.iter().position(|(cell, _)| cell == heading))
        };
        for heading in losable {
            if excess(&self) == 0 {
                return self;
            }
            if let Some(column) = position(&self, heading) {
                self.rows
                    .iter_mut()
                    .filter(|row| row.len() > column)
                    .for_each(|row| drop(row.remove(column)));
            }
        }
        let excess = excess(&self);
        if excess > 0
            && let Some(column) = position(&self, elastic)
        {
            let room = self.widths().get(column).map_or(0, |width| width.saturating_sub(excess));
            let room = room.max(ELASTIC_CHARS_MIN);
            for (cell, _) in self.rows.iter_mut().filter_map(|row| row.get_mut(column)) {
                *cell = shorten(cell, room);
            }
        }
        self
    }
}

fn width((cell, _): &(String, Option<Style>)) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::{Paint, Style, Table};

    #[test]
    fn a_narrow_terminal_loses_columns_in_their_turn() {
        let check = |columns, expect: &str| {
            let mut table = Table::new(&["NAME", "STATUS", "PORTS", "NODE"], Paint::Plain);
            table.row([
                "web-0".into(),
                "Failed 3 s ago: no such command".into(),
                "80/tcp".into(),
                "1".into(),
            ]);
            let text = table.fit(columns, &["PORTS", "NODE"], "STATUS").render();
            assert_eq!(text.lines().next_back(), Some(expect), "{columns:?}");
            assert!(
                columns.is_none_or(|columns| columns < 20 || text.lines().all(|line| line.len() <= columns))
            );
        };
        check(None, "web-0   Failed 3 s ago: no such command   80/tcp   1");
        check(Some(55), "web-0   Failed 3 s ago: no such command   80/tcp   1");
        check(Some(54), "web-0   Failed 3 s ago: no such command   1");
        check(Some(42), "web-0   Failed 3 s ago: no such command");
        check(Some(30), "web-0   Failed 3 s ago: no...");
        check(Some(5), "web-0   Failed 3...");
    }

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
