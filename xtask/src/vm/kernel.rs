//! Which kernel is meant, and which of those that there are comes closest.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail};

/// Debian's flavour for virtual machines: small, and all that the program needs is built in.
const FLAVOUR: &str = "-cloud-amd64";

/// Where a package's kernel comes from, as its name begins: the first that there is of one version is taken. Newer
/// packages called `linux-image` hold no kernel but depend on a `linux-binary` that does.
const PREFIXES: [&str; 3] = ["linux-binary-unsigned-", "linux-binary-", "linux-image-"];

/// So many minor versions make a major one; the last of 5 and 6 was 19.
const MINORS: u32 = 20;

/// A kernel that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The last of a series, such as 6.12.
    Series(u32, u32),
    /// The newest that there is.
    Newest,
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let numbers = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        match numbers {
            Some((major, minor)) => Ok(Self::Series(major, minor)),
            None => bail!("it is no series of kernels\nhint: write two numbers, such as `6.12`, or `newest`"),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(major, minor) => write!(out, "{major}.{minor}"),
            Self::Newest => out.write_str("newest"),
        }
    }
}

/// A package with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The package's name.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// Major, minor and patch.
    numbers: [u32; 3],
}

impl Kernel {
    /// The kernel of a package, unless it is of another flavour, holds something else, or is a release candidate.
    pub fn of(package: &str, version: &str) -> Option<Self> {
        let release = PREFIXES.iter().find_map(|prefix| package.strip_prefix(prefix))?;
        let release = release.strip_suffix("-unsigned").unwrap_or(release).strip_suffix(FLAVOUR)?;
        if !release.starts_with(|first: char| first.is_ascii_digit()) || version.contains("~rc") {
            return None;
        }
        let upstream = version.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
        let mut parts = upstream.split('.').map(number);
        let numbers = [parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)];
        Some(Self { package: package.to_owned(), version: version.to_owned(), numbers })
    }

    /// Whether this is what was asked for, and not a replacement.
    pub fn is(&self, wanted: Wanted) -> bool {
        let [major, minor, _] = self.numbers;
        wanted == Wanted::Newest || wanted == Wanted::Series(major, minor)
    }

    /// How far this is from what was asked for; the smallest is the best.
    fn distance(&self, wanted: Wanted) -> impl Ord + use<> {
        let [major, minor, _] = self.numbers;
        let place = |major: u32, minor: u32| major.saturating_mul(MINORS).saturating_add(minor);
        let here = place(major, minor);
        let (apart, newer) = match wanted {
            Wanted::Series(major, minor) => {
                let there = place(major, minor);
                // Of two that are as near, the older: it can do less.
                (here.abs_diff(there), here > there)
            }
            Wanted::Newest => (0, false),
        };
        let unsigned = self.package.contains("unsigned");
        let image = self.package.starts_with("linux-image-");
        (apart, newer, Reverse(self.numbers), self.version.contains('~'), unsigned, image)
    }
}

/// The kernels in the order in which they are to be tried, without doubles: the newest of the series that was asked
/// for comes first, and behind that series those that are nearest to it.
pub fn by_distance(wanted: Wanted, mut kernels: Vec<Kernel>) -> Vec<Kernel> {
    kernels.sort_by(|a, b| {
        let order = a.distance(wanted).cmp(&b.distance(wanted));
        order.then_with(|| (&a.package, &a.version).cmp(&(&b.package, &b.version)))
    });
    kernels.dedup();
    kernels
}

/// Digits and nothing else, not even a sign.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Vec<Kernel> {
        [
            ("linux-image-5.10.0-30-cloud-amd64", "5.10.218-1"),
            ("linux-image-5.10.0-32-cloud-amd64-unsigned", "5.10.223-1"),
            ("linux-image-5.10.0-32-cloud-amd64", "5.10.223-1"),
            ("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1"),
            ("linux-image-6.12.94+deb12-cloud-amd64", "6.12.94-1~bpo12+1"),
            ("linux-image-6.12.94+deb13-cloud-amd64", "6.12.94-1"),
            ("linux-image-6.12.107+deb13-cloud-amd64", "6.12.107-1"),
            ("linux-image-6.12.107+deb13-cloud-amd64", "6.12.107-1"),
            ("linux-image-7.2.13+deb14-cloud-amd64", "7.2.13-1"),
            ("linux-binary-7.2.13+deb14-cloud-amd64", "7.2.13-1"),
        ]
        .iter()
        .map(|(package, version)| Kernel::of(package, version).unwrap())
        .collect()
    }

    fn first(wanted: &str) -> String {
        by_distance(wanted.parse().unwrap(), kernels())[0].package.clone()
    }

    #[test]
    fn only_cloud_kernels_of_this_architecture_count() {
        for (package, version) in [
            ("linux-image-6.1.0-50-amd64", "6.1.176-1"),
            ("linux-image-6.1.0-50-cloud-amd64-dbg", "6.1.176-1"),
            ("linux-image-6.1.0-50-cloud-arm64", "6.1.176-1"),
            ("linux-image-cloud-amd64", "6.1.176-1"),
            ("linux-headers-6.1.0-50-cloud-amd64", "6.1.176-1"),
            ("linux-image-7.3-cloud-amd64", "7.3~rc2-1~exp1"),
            ("linux-image-6.1.0-50-cloud-amd64", "none"),
        ] {
            assert_eq!(Kernel::of(package, version), None, "{package} {version}");
        }
        assert_eq!(Kernel::of("linux-image-7.3-cloud-amd64", "7.3-1").unwrap().numbers, [7, 3, 0]);
    }

    #[test]
    fn the_newest_of_the_series_comes_first_and_the_signed_one() {
        assert_eq!(first("5.10"), "linux-image-5.10.0-32-cloud-amd64");
        assert_eq!(first("6.12"), "linux-image-6.12.107+deb13-cloud-amd64");
        let all = by_distance(Wanted::Series(6, 12), kernels());
        assert_eq!(all[1].version, "6.12.94-1", "no double, and no backport before the original");
    }

    #[test]
    fn the_package_that_holds_the_kernel_comes_before_the_one_that_depends_on_it() {
        assert_eq!(first("newest"), "linux-binary-7.2.13+deb14-cloud-amd64");
    }

    #[test]
    fn what_is_not_there_is_replaced_by_the_nearest() {
        for (wanted, package) in [
            ("4.19", "linux-image-5.10.0-32-cloud-amd64"),
            ("5.15", "linux-image-5.10.0-32-cloud-amd64"),
            ("5.16", "linux-image-6.1.0-50-cloud-amd64"),
            ("6.11", "linux-image-6.12.107+deb13-cloud-amd64"),
            ("6.19", "linux-binary-7.2.13+deb14-cloud-amd64"),
            ("9.0", "linux-binary-7.2.13+deb14-cloud-amd64"),
        ] {
            let wanted: Wanted = wanted.parse().unwrap();
            let nearest = &by_distance(wanted, kernels())[0];
            assert_eq!((nearest.package.as_str(), nearest.is(wanted)), (package, false), "{wanted}");
        }
        assert!(by_distance(Wanted::Newest, vec![]).is_empty());
    }

    #[test]
    fn of_two_that_are_as_near_the_older_is_taken() {
        let kernels = ["6.1.1-1", "6.5.1-1"].map(|v| Kernel::of("linux-image-1-cloud-amd64", v).unwrap());
        assert_eq!(by_distance(Wanted::Series(6, 3), kernels.to_vec())[0].version, "6.1.1-1");
    }

    #[test]
    fn versions_are_two_numbers() {
        for text in ["", "5", "5.", ".10", "5.x", "v5.10", "5.+1", "6.12.3", "latest"] {
            assert!(text.parse::<Wanted>().is_err(), "`{text}`");
        }
        assert_eq!("6.12".parse::<Wanted>().unwrap().to_string(), "6.12");
    }
}
