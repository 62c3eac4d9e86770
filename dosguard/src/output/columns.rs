//! Very many lines in columns: as a table looks, made much faster.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr as _;

/// Lines of `N` cells, which are written when all of them are there: as wide as the widest of each column, with two blanks
/// between them.
#[derive(Debug)]
pub struct Columns<const N: usize> {
    /// All cells, one after the other.
    text: String,
    /// Where each of them ends, and how wide it is.
    ends: Vec<(usize, usize)>,
    widths: [usize; N],
}

impl<const N: usize> Default for Columns<N> {
    fn default() -> Self {
        Self { text: String::new(), ends: Vec::new(), widths: [0; N] }
    }
}

impl<const N: usize> Columns<N> {
    /// Begins with a line of names.
    pub fn new(names: [&str; N]) -> Self {
        let mut columns = Self::default();
        columns.line(names);
        columns
    }

    /// Adds all lines of another one.
    pub fn append(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|(end, width)| (start + end, *width)));
        for (most, width) in self.widths.iter_mut().zip(other.widths) {
            *most = width.max(*most);
        }
    }

    /// Adds a line.
    pub fn line(&mut self, cells: [&str; N]) {
        for (cell, most) in cells.into_iter().zip(&mut self.widths) {
            self.text.push_str(cell);
            let width = if cell.is_ascii() { cell.len() } else { cell.width() };
            self.ends.push((self.text.len(), width));
            *most = width.max(*most);
        }
    }

    /// Writes all lines.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = String::new();
        let mut start = 0;
        for cells in self.ends.chunks_exact(N) {
            line.clear();
            for ((end, width), most) in cells.iter().zip(&self.widths) {
                line.push_str(self.text.get(start..*end).unwrap_or_default());
                line.extend(std::iter::repeat_n(' ', most - width + 2));
                start = *end;
            }
            line.truncate(line.trim_end_matches(' ').len());
            line.push('\n');
            out.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{table, write_table};

    #[test]
    fn lines_look_as_a_table_does() {
        let names = ["SOURCE", "NOTE", "LIMIT"];
        let lines = [["192.0.2.1", "-", "3/60s"], ["2001:db8::/64", "zurück", ""], ["a", "日本", "b c"]];
        let (mut columns, mut rows) = (Columns::new(names), table(&names));
        for line in lines {
            let mut others = Columns::default();
            others.line(line);
            columns.append(&others);
            rows.add_row(line);
        }
        let (mut one, mut other) = (Vec::new(), Vec::new());
        columns.write(&mut one).unwrap();
        write_table(&mut other, &rows).unwrap();
        assert_eq!(String::from_utf8(one).unwrap(), String::from_utf8(other).unwrap());
    }
}
