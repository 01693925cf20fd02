//! Reads a capture: which streams there were, what they carried, and whether that was TLS.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};

/// What a capture saw.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Packets of any kind.
    pub packets: usize,
    /// One direction of one TCP connection each.
    pub streams: Vec<Stream>,
    frames: Vec<Vec<u8>>,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who sent.
    pub from: SocketAddr,
    /// Who received.
    pub to: SocketAddr,
    /// The payload, in order, each byte once.
    pub bytes: Vec<u8>,
    /// Bytes that are missing between those that were seen.
    pub missing: usize,
}

/// What a stream of TLS records consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Records {
    /// Handshake records in the clear: ClientHello and ServerHello.
    pub handshake: usize,
    /// Records of encrypted data.
    pub application_data: usize,
    /// A ServerHello chose TLS 1.3.
    pub tls13: bool,
}

impl Traffic {
    /// Reads a pcap file of Ethernet frames.
    ///
    /// # Errors
    /// When it is none, or ends within a packet.
    pub fn read(file: &[u8]) -> Result<Self> {
        let word = |at: usize| -> Result<u32> {
            let bytes = file.get(at..at + 4).context("the capture ends early")?;
            Ok(u32::from_le_bytes(bytes.try_into()?))
        };
        ensure!(
            matches!(word(0)?, 0xa1b2_c3d4 | 0xa1b2_3c4d),
            "not a pcap file of this machine's byte order"
        );
        ensure!(word(20)? & 0xffff == 1, "not a capture of Ethernet frames");
        let mut traffic = Self::default();
        let mut segments: BTreeMap<(SocketAddr, SocketAddr), Segments> = BTreeMap::new();
        let mut at = 24;
        while at < file.len() {
            let length = usize::try_from(word(at + 8)?)?;
            ensure!(word(at + 12)? == word(at + 8)?, "a packet was cut short in the capture");
            let frame = file.get(at + 16..at + 16 + length).context("the capture ends within a packet")?;
            traffic.packets += 1;
            if let Some(segment) = tcp_segment(frame) {
                segments.entry((segment.from, segment.to)).or_default().add(&segment);
            }
            traffic.frames.push(frame.to_vec());
            at += 16 + length;
        }
        for ((from, to), segments) in segments {
            traffic.streams.extend(segments.connections().into_iter().map(|(bytes, missing)| Stream {
                from,
                to,
                bytes,
                missing,
            }));
        }
        Ok(traffic)
    }

    /// How often `marker` stands in the packets or, cut in two by a packet's end, in the streams.
    pub fn hits(&self, marker: &[u8]) -> usize {
        let within: usize = self.frames.iter().map(|frame| occurrences(frame, marker)).sum();
        let across: usize = self.streams.iter().map(|stream| occurrences(&stream.bytes, marker)).sum();
        within.max(across)
    }

    /// Payload bytes of all TCP streams.
    pub fn payload(&self) -> usize {
        self.streams.iter().map(|stream| stream.bytes.len()).sum()
    }

    /// The streams between two addresses that carried payload, both ways.
    pub fn between(&self, one: IpAddr, other: IpAddr) -> Vec<&Stream> {
        let ends = [(one, other), (other, one)];
        let matching =
            |stream: &&Stream| ends.contains(&(stream.from.ip(), stream.to.ip())) && !stream.bytes.is_empty();
        self.streams.iter().filter(matching).collect()
    }

    /// Packets of IP between two addresses, whatever they carry.
    pub fn packets_between(&self, one: IpAddr, other: IpAddr) -> usize {
        let ends = [(one, other), (other, one)];
        self.frames
            .iter()
            .filter(|frame| ip_packet(frame).is_some_and(|ip| ends.contains(&(ip.from, ip.to))))
            .count()
    }
}

impl Stream {
    /// The TLS records that the stream consists of.
    ///
    /// # Errors
    /// When any byte of it is outside a record, or it has a hole: says where.
    pub fn records(&self) -> Result<Records> {
        ensure!(self.missing == 0, "{} bytes of the stream were not captured", self.missing);
        let mut records = Records::default();
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            let at = self.bytes.len() - rest.len();
            let header = rest.get(..5).with_context(|| format!("at {at}: an unfinished record header"))?;
            let &[kind, 3, minor, high, low] = header else {
                anyhow::bail!("at {at}: {header:02x?} is no header of a TLS record");
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            // 2^14 and the 256 bytes that TLS 1.3 allows for the tag, the type and the padding.
            ensure!(
                (20..=23).contains(&kind) && minor <= 3 && length <= 16_640,
                "at {at}: {header:02x?} is no header of a TLS record"
            );
            let body = rest.get(5..5 + length).with_context(|| format!("at {at}: an unfinished record"))?;
            match kind {
                22 => {
                    records.handshake += 1;
                    records.tls13 |= server_hello_chose_13(body);
                }
                23 => records.application_data += 1,
                _ => {}
            }
            rest = rest.get(5 + length..).unwrap_or_default();
        }
        Ok(records)
    }
}

/// How often, none overlapping another.
fn occurrences(text: &[u8], marker: &[u8]) -> usize {
    let (mut found, mut at) = (0, 0);
    while let Some(window) = text.get(at..at + marker.len()).filter(|_| !marker.is_empty()) {
        let hit = window == marker;
        found += usize::from(hit);
        at += if hit { marker.len() } else { 1 };
    }
    found
}

/// `supported_versions` (43) of a ServerHello names 0x0304.
fn server_hello_chose_13(body: &[u8]) -> bool {
    let chosen = || -> Option<u16> {
        let number = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
        if *body.first()? != 2 {
            return None;
        }
        // Message header 4, version 2, random 32, session id 1 + n, cipher suite 2, compression 1.
        let session = usize::from(*body.get(38)?);
        let mut at = 39 + session + 3;
        let end = at + 2 + usize::from(number(at)?);
        at += 2;
        while at + 4 <= end {
            let (kind, length) = (number(at)?, usize::from(number(at + 2)?));
            if kind == 43 {
                return number(at + 4);
            }
            at += 4 + length;
        }
        None
    };
    chosen() == Some(0x0304)
}

struct IpPacket<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

fn ip_packet(frame: &[u8]) -> Option<IpPacket<'_>> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            // The frame may be padded; a length of 0 stands for a packet that the card would have cut (GSO).
            let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let packet = if length == 0 { packet } else { packet.get(..length)? };
            Some(IpPacket {
                from: Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?).into(),
                to: Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?).into(),
                protocol: *packet.get(9)?,
                payload: packet.get(header..)?,
            })
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            Some(IpPacket {
                from: Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?).into(),
                to: Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?).into(),
                protocol: *packet.get(6)?,
                payload: if length == 0 { packet.get(40..)? } else { packet.get(40..40 + length)? },
            })
        }
        _ => None,
    }
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

fn tcp_segment(frame: &[u8]) -> Option<Segment<'_>> {
    let ip = ip_packet(frame).filter(|ip| ip.protocol == 6)?;
    let tcp = ip.payload;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(ip.from, port(0)?),
        to: SocketAddr::new(ip.to, port(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        syn: tcp.get(13)? & 2 != 0,
        payload: tcp.get(header..)?,
    })
}

/// What one address and port sent to another, over one connection or several.
#[derive(Default)]
struct Segments {
    connections: Vec<(u32, BTreeMap<u32, Vec<u8>>)>,
}

impl Segments {
    fn add(&mut self, segment: &Segment<'_>) {
        let first = if segment.syn { segment.sequence.wrapping_add(1) } else { segment.sequence };
        let known = self.connections.last().is_some_and(|(begin, _)| *begin == first);
        if self.connections.is_empty() || (segment.syn && !known) {
            self.connections.push((first, BTreeMap::new()));
        }
        let Some((begin, parts)) = self.connections.last_mut() else { return };
        if !segment.payload.is_empty() {
            let part = parts.entry(first.wrapping_sub(*begin)).or_default();
            if part.len() < segment.payload.len() {
                *part = segment.payload.to_vec();
            }
        }
    }

    fn connections(self) -> Vec<(Vec<u8>, usize)> {
        self.connections
            .into_iter()
            .map(|(_, parts)| {
                let (mut bytes, mut missing, mut next) = (Vec::new(), 0, 0usize);
                for (offset, part) in parts {
                    let offset = offset as usize;
                    missing += offset.saturating_sub(next);
                    // A retransmission may begin within what is there already.
                    let fresh = part.get(next.saturating_sub(offset)..).unwrap_or_default();
                    bytes.extend_from_slice(fresh);
                    next = next.max(offset + part.len());
                }
                (bytes, missing)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Stream, Traffic, occurrences, server_hello_chose_13};

    #[test]
    fn a_marker_that_repeats_itself_is_counted_once_each_time() {
        assert_eq!(occurrences(b"aaaaa", b"aa"), 2);
        assert_eq!(occurrences(b"abab", b"ab"), 2);
        assert_eq!(occurrences(b"a", b"ab"), 0);
        assert_eq!(occurrences(b"a", b""), 0);
    }

    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        frame.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x10, 0, 0, 80]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }

    #[test]
    fn a_marker_across_two_packets_out_of_order_and_sent_twice_is_found_once() {
        let frames =
            [frame(99, 2, b""), frame(104, 0, b"ker!"), frame(100, 0, b"amar"), frame(100, 0, b"amar")];
        let traffic = Traffic::read(&file(&frames)).unwrap();
        assert_eq!(traffic.streams.len(), 1);
        assert_eq!(traffic.streams[0].bytes, b"amarker!");
        assert_eq!(traffic.hits(b"marker"), 1);
        assert_eq!(traffic.hits(b"maker"), 0);
    }

    #[test]
    fn padding_of_a_short_frame_is_not_payload() {
        let mut padded = frame(1, 0, b"x");
        padded.extend([0; 5]);
        assert_eq!(Traffic::read(&file(&[padded])).unwrap().payload(), 1);
    }

    #[test]
    fn a_hole_is_told() {
        let traffic = Traffic::read(&file(&[frame(99, 2, b""), frame(105, 0, b"late")])).unwrap();
        assert_eq!(traffic.streams[0].missing, 5);
        assert!(traffic.streams[0].records().is_err());
    }

    #[test]
    fn records_cover_every_byte_or_it_is_no_tls() {
        let stream = |bytes: &[u8]| Stream {
            from: "10.0.0.1:1".parse().unwrap(),
            to: "10.0.0.2:2".parse().unwrap(),
            bytes: bytes.into(),
            missing: 0,
        };
        let good = [22, 3, 1, 0, 1, 1, 23, 3, 3, 0, 2, 0, 0];
        let records = stream(&good).records().unwrap();
        assert_eq!((records.handshake, records.application_data, records.tls13), (1, 1, false));
        let mut followed = good.to_vec();
        followed.extend(b"GET / HTTP/1.1");
        assert!(stream(&followed).records().is_err());
        assert!(stream(&good[..12]).records().is_err());
    }

    #[test]
    fn the_version_is_read_from_the_server_hello() {
        let mut hello = vec![2, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.extend([1, 9, 0x13, 1, 0, 0, 6, 0, 43, 0, 2, 3, 4]);
        assert!(server_hello_chose_13(&hello));
        *hello.last_mut().unwrap() = 3;
        assert!(!server_hello_chose_13(&hello));
        assert!(!server_hello_chose_13(&hello[..20]));
    }
}
