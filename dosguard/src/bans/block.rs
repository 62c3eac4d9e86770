//! A block of lines in a file that belongs to somebody else.
//!
//! What lies outside the two markers is never touched, byte for byte, whatever it is.

use thiserror::Error;

/// Why a file's block cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MarkerError {
    /// The markers do not enclose one block.
    #[error(
        "the markers of dosguard instance `{instance}` do not enclose one block: {what}\n\
         hint: remove the lines `# dosguard {instance} …` and what dosguard wrote between them; the block is then written \
         anew"
    )]
    Damaged {
        /// The instance.
        instance: String,
        /// What was found.
        what: String,
    },
}

/// The file's content with the instance's block as it is to be: `lines`, which end with a line break unless there are none.
///
/// A file without a block gets one at its end or, if its last line has no line break or ends in a backslash, at its
/// beginning: it is not ours to end that line, and it would go on with the block.
pub fn replace(content: &[u8], instance: &str, lines: &[u8]) -> Result<Vec<u8>, MarkerError> {
    let [begin, end] = markers(instance);
    let block = [begin.as_bytes(), b"\n", lines, end.as_bytes(), b"\n"].concat();
    match find(content, instance)? {
        Some((from, to)) => Ok([&content[..from], &block, &content[to..]].concat()),
        None if content.is_empty() || (content.ends_with(b"\n") && !goes_on(content)) => {
            Ok([content, &block].concat())
        }
        None => Ok([&block, content].concat()),
    }
}

/// Whether the last line goes on in the next one (hosts_access(5)).
fn goes_on(content: &[u8]) -> bool {
    content.ends_with(b"\\\n") || content.ends_with(b"\\\r\n")
}

fn markers(instance: &str) -> [String; 2] {
    [
        format!("# dosguard {instance} begin: sources that are banned; do not edit between these lines"),
        format!("# dosguard {instance} end"),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Begin,
    End,
}

/// The marker that a line is. What stands behind the word is not compared: an older version may have said it differently.
fn marker(line: &[u8], instance: &str) -> Option<Marker> {
    let rest = line.strip_prefix(b"# dosguard ")?.strip_prefix(instance.as_bytes())?.strip_prefix(b" ")?;
    let ends = |rest: &[u8]| rest.first().is_none_or(|byte| b": \t\r\n".contains(byte));
    match rest {
        [b'b', b'e', b'g', b'i', b'n', rest @ ..] if ends(rest) => Some(Marker::Begin),
        [b'e', b'n', b'd', rest @ ..] if ends(rest) => Some(Marker::End),
        _ => None,
    }
}

/// Where the block is, its markers and their line breaks included.
fn find(content: &[u8], instance: &str) -> Result<Option<(usize, usize)>, MarkerError> {
    let mut found = Vec::new();
    let mut from = 0;
    for (number, line) in (1..).zip(content.split_inclusive(|byte| *byte == b'\n')) {
        let to = from + line.len();
        if let Some(marker) = marker(line, instance) {
            found.push((marker, number, from, to));
        }
        from = to;
    }
    match found[..] {
        [] => Ok(None),
        [(Marker::Begin, _, from, _), (Marker::End, _, _, to)] => Ok(Some((from, to))),
        _ => {
            let told = found.iter().take(4).map(|(marker, line, ..)| match marker {
                Marker::Begin => format!("begin in line {line}"),
                Marker::End => format!("end in line {line}"),
            });
            let what = told.collect::<Vec<_>>().join(", ");
            Err(MarkerError::Damaged { instance: instance.to_owned(), what })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "# dosguard lab begin: sources that are banned; do not edit between these lines\n";
    const END: &str = "# dosguard lab end\n";

    fn replaced(content: impl AsRef<[u8]>, lines: &str) -> Vec<u8> {
        replace(content.as_ref(), "lab", lines.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_gets_a_block_and_keeps_all_else() {
        let block = format!("{BEGIN}192.0.2.1\n{END}");
        let outside: [&[u8]; 6] = [
            b"",
            b"ALL: 203.0.113.1\n",
            b"a\r\nb\r\n",
            b"\xff\xfe\0\n",
            b"\n\n",
            b"# dosguard begin\n# dosguard labs end\n",
        ];
        for before in outside {
            let with = replaced(before, "192.0.2.1\n");
            assert_eq!(with, [before, block.as_bytes()].concat());
            for after in outside {
                let content = [&with[..], after].concat();
                assert_eq!(replaced(&content, "192.0.2.1\n"), content, "nothing to do");
                let emptied = replaced(&content, "");
                assert_eq!(emptied, [before, BEGIN.as_bytes(), END.as_bytes(), after].concat());
                assert_eq!(replaced(&emptied, "192.0.2.1\n"), content);
            }
        }
        // The last line is not ours to end.
        let first = replaced("ALL: 203.0.113.1", "192.0.2.1\n");
        assert_eq!(first, format!("{block}ALL: 203.0.113.1").as_bytes());
        assert_eq!(replaced(&first, "192.0.2.1\n"), first);
        let first = replaced("ALL: 203.0.113.1 \\\n", "192.0.2.1\n");
        assert_eq!(
            first,
            format!("{block}ALL: 203.0.113.1 \\\n").as_bytes(),
            "it would go on with the block"
        );
    }

    #[test]
    fn markers_are_known_however_they_were_written() {
        let content = "# dosguard lab begin\r\nold\r\n# dosguard lab end";
        assert_eq!(replaced(content, "new\n"), format!("{BEGIN}new\n{END}").as_bytes());
    }

    #[test]
    fn two_instances_keep_to_their_own_blocks() {
        let one = replaced("x\n", "192.0.2.1\n");
        let both = replace(&one, "labor", b"192.0.2.2\n").unwrap();
        let changed = replaced(&both, "192.0.2.3\n");
        assert_eq!(replace(&changed, "labor", b"192.0.2.2\n").unwrap(), changed);
        assert_eq!(replaced(&changed, "192.0.2.1\n"), both);
    }

    #[test]
    fn damaged_markers_change_nothing() {
        for (content, what) in [
            (format!("{BEGIN}x\n"), "begin in line 1"),
            (format!("x\n{END}"), "end in line 2"),
            (format!("{END}{BEGIN}"), "end in line 1, begin in line 2"),
            (
                format!("{BEGIN}{END}{BEGIN}{END}"),
                "begin in line 1, end in line 2, begin in line 3, end in line 4",
            ),
            (format!("{BEGIN}{BEGIN}{END}"), "begin in line 1, begin in line 2, end in line 3"),
        ] {
            let error = replace(content.as_bytes(), "lab", b"").unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("\nhint: "), "{error}");
        }
    }
}
