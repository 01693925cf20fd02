use super::workload::Pod;

/// A list of ports as annotations write it: numbers, ranges and (of a pod's own ports) names, divided by commas.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PortSet {
    ranges: Vec<(u16, u16)>,
}

impl PortSet {
    /// Reads a list. Names are those of the TCP ports that `pod` declares; a name that it does not declare is no
    /// port. Fails with the entry that cannot be read.
    pub fn parse(text: &str, pod: &Pod) -> Result<Self, String> {
        let mut ranges = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let number = |text: &str| {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                text.parse::<u16>().ok().filter(|port| digits && *port != 0)
            };
            let range = match entry.split_once('-') {
                Some((first, last)) => number(first.trim()).zip(number(last.trim())),
                None => number(entry).map(|port| (port, port)),
            };
            match range {
                Some((first, last)) if first <= last => ranges.push((first, last)),
                Some(_) => return Err(entry.to_owned()),
                None if check_port_name(entry) => {
                    ranges.extend(pod.named_tcp_ports(entry).map(|port| (port, port)));
                }
                None => return Err(entry.to_owned()),
            }
        }
        Ok(Self { ranges })
    }

    /// A list of single ports.
    pub fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        Self { ranges: ports.into_iter().map(|port| (port, port)).collect() }
    }

    /// Every port.
    pub fn all() -> Self {
        Self { ranges: vec![(1, u16::MAX)] }
    }

    /// Whether the list names a port.
    pub fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// The ports, some perhaps twice.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// How many ports the list names, counting one that it names twice as two; the greatest number, if there are more.
    pub fn size(&self) -> u32 {
        let sizes = self.ranges.iter().map(|(first, last)| u32::from(*last) - u32::from(*first) + 1);
        sizes.fold(0, u32::saturating_add)
    }

    /// Whether one of its ranges is every port.
    pub fn is_all(&self) -> bool {
        self.ranges.contains(&(1, u16::MAX))
    }
}

/// Whether a text is the name of a port: at most 15 lower-case letters, digits and single inner dashes, a letter
/// among them.
pub fn check_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
