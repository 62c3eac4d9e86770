//! Sets of TCP ports: `tcp/25`, `tcp/8000-8100`.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// A set of TCP ports, none of them 0.
///
/// As text, parts joined by commas: `tcp/25,tcp/587,tcp/8000-8100`. Displayed in order, neighbours as a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(BTreeSet<u16>);

/// Why a text names no set of ports.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PortError {
    /// It is not a protocol, a slash and a port or range.
    #[error(
        "`{text}` is not a port\nhint: `tcp/` and a port or a range, such as `tcp/25` or `tcp/8000-8100`"
    )]
    Shape {
        /// What was written.
        text: String,
    },
    /// The protocol is another than TCP.
    #[error(
        "`{text}`: protocol `{protocol}` has no connections to count\nhint: only `tcp`, such as `tcp/25`"
    )]
    Protocol {
        /// What was written.
        text: String,
        /// What stands before the slash.
        protocol: String,
    },
    /// A port is 0 or above 65535.
    #[error("`{text}`: there is no port `{port}`\nhint: from 1 to 65535")]
    OutOfRange {
        /// What was written.
        text: String,
        /// The number that is no port.
        port: String,
    },
    /// A range ends before it begins.
    #[error("`{text}` ends before it begins\nhint: did you mean `tcp/{last}-{first}`?")]
    Reversed {
        /// What was written.
        text: String,
        /// The first number written.
        first: u16,
        /// The last number written.
        last: u16,
    },
    /// A port is in the set already.
    #[error("`{text}`: port `tcp/{port}` is named twice\nhint: name each port once")]
    Twice {
        /// What was written.
        text: String,
        /// The port.
        port: u16,
    },
}

impl Ports {
    /// Adds what one part says: `tcp/25` or `tcp/8000-8100`.
    ///
    /// # Errors
    ///
    /// The part is malformed, or names a port that is there already; then nothing is added.
    pub fn add(&mut self, part: &str) -> Result<(), PortError> {
        let range = parse_part(part)?;
        if let Some(&port) = self.0.range(range.clone()).next() {
            return Err(PortError::Twice { text: part.to_owned(), port });
        }
        self.0.extend(range);
        Ok(())
    }

    /// Whether there is no port in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }

    /// Its ports in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }

    /// The lowest port that is in both sets.
    pub fn first_common(&self, other: &Self) -> Option<u16> {
        self.0.intersection(&other.0).next().copied()
    }

    /// Its ports as ranges in rising order, neighbours in one.
    pub fn runs(&self) -> Vec<RangeInclusive<u16>> {
        let mut runs: Vec<RangeInclusive<u16>> = Vec::new();
        for port in self.iter() {
            match runs.last_mut() {
                Some(run) if run.end() + 1 == port => *run = *run.start()..=port,
                _ => runs.push(port..=port),
            }
        }
        runs
    }
}

impl FromIterator<u16> for Ports {
    /// From bare numbers, as the maps give them. 0 is left out.
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self(ports.into_iter().filter(|port| *port != 0).collect())
    }
}

impl FromStr for Ports {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let mut ports = Self::default();
        for part in text.split(',') {
            ports.add(part.trim())?;
        }
        Ok(ports)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.runs().into_iter().map(|run| match run.into_inner() {
            (first, last) if first == last => format!("tcp/{first}"),
            (first, last) => format!("tcp/{first}-{last}"),
        });
        f.pad(&parts.collect::<Vec<_>>().join(","))
    }
}

fn parse_part(part: &str) -> Result<RangeInclusive<u16>, PortError> {
    let text = part.to_owned();
    let Some((protocol, numbers)) = part.split_once('/') else {
        return Err(PortError::Shape { text });
    };
    if protocol != "tcp" {
        // `25/tcp`, as in /etc/services, is the wrong way round rather than another protocol.
        if !protocol.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(PortError::Shape { text });
        }
        return Err(PortError::Protocol { text, protocol: protocol.to_owned() });
    }
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (first, last) = (parse_port(part, first)?, parse_port(part, last)?);
    if first > last {
        return Err(PortError::Reversed { text, first, last });
    }
    Ok(first..=last)
}

fn parse_port(part: &str, number: &str) -> Result<u16, PortError> {
    let text = part.to_owned();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortError::Shape { text });
    }
    match number.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(PortError::OutOfRange { text, port: number.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        text.parse().unwrap()
    }

    #[test]
    fn sets_are_shown_in_order_and_compact() {
        let cases = [
            ("tcp/25", "tcp/25"),
            ("tcp/587,tcp/25", "tcp/25,tcp/587"),
            ("tcp/25, tcp/8000-8100", "tcp/25,tcp/8000-8100"),
            ("tcp/2,tcp/1,tcp/3", "tcp/1-3"),
            ("tcp/80-80", "tcp/80"),
            ("tcp/1-65535", "tcp/1-65535"),
            ("tcp/65534,tcp/65535", "tcp/65534-65535"),
        ];
        for (text, shown) in cases {
            assert_eq!(ports(text).to_string(), shown);
            assert_eq!(ports(shown), ports(text));
        }
    }

    #[test]
    fn sets_know_what_is_in_them() {
        let set = ports("tcp/25,tcp/8000-8002");
        assert_eq!(set.iter().collect::<Vec<_>>(), [25, 8000, 8001, 8002]);
        assert!(set.contains(8001) && !set.contains(26));
        assert_eq!(set.first_common(&ports("tcp/26,tcp/8001-9000")), Some(8001));
        assert_eq!(set.first_common(&Ports::default()), None);
        assert_eq!([0, 7, 7].into_iter().collect::<Ports>(), ports("tcp/7"));
    }

    #[test]
    fn bad_ports_say_what_is_accepted() {
        let shape = "\nhint: `tcp/` and a port or a range, such as `tcp/25` or `tcp/8000-8100`";
        for text in ["", "25", "tcp/", "tcp/smtp", "tcp/25-", "tcp/-25", "tcp/+25", "tcp/1-2-3", "25/tcp"] {
            let error = text.parse::<Ports>().unwrap_err().to_string();
            assert_eq!(error, format!("`{text}` is not a port{shape}"));
        }
        let cases = [
            (
                "udp/53",
                "`udp/53`: protocol `udp` has no connections to count\nhint: only `tcp`, such as `tcp/25`",
            ),
            ("tcp/0", "`tcp/0`: there is no port `0`\nhint: from 1 to 65535"),
            ("tcp/0-10", "`tcp/0-10`: there is no port `0`\nhint: from 1 to 65535"),
            ("tcp/65536", "`tcp/65536`: there is no port `65536`\nhint: from 1 to 65535"),
            ("tcp/90-80", "`tcp/90-80` ends before it begins\nhint: did you mean `tcp/80-90`?"),
            ("tcp/80-90,tcp/85", "`tcp/85`: port `tcp/85` is named twice\nhint: name each port once"),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<Ports>().unwrap_err().to_string(), message);
        }
        assert!("tcp/25,".parse::<Ports>().is_err());
    }
}
