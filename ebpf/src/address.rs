use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as every map holds it: 16 bytes in network order, IPv4 in its mapped form (`::ffff:a.b.c.d`).
///
/// One form for both families, so that an IPv4-mapped `connect()` and a plain one meet the same entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct Address {
    /// The address, in network byte order.
    pub bytes: [u8; 16],
}

impl Address {
    /// `::`, which no entry bears.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// The mapped form of an IPv4 address given in network byte order, as the kernel's contexts hold it.
    #[inline(always)]
    pub const fn from_v4(network_order: u32) -> Self {
        let v4 = network_order.to_ne_bytes();
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]] }
    }

    /// An IPv6 address given as four words in network byte order, as the kernel's contexts hold it.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        let (a, b, c, d) =
            (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes());
        Self {
            bytes: [
                a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
                d[3],
            ],
        }
    }

    /// The four words in network byte order, as the kernel's contexts hold them.
    #[inline(always)]
    pub const fn to_v6(self) -> [u32; 4] {
        let b = self.bytes;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// The IPv4 part in network byte order; meaningful only where [`Self::is_v4`].
    #[inline(always)]
    pub const fn to_v4(self) -> u32 {
        self.to_v6()[3]
    }

    /// Whether this is an IPv4 address (in mapped form).
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let w = self.to_v6();
        w[0] == 0 && w[1] == 0 && w[2] == 0x0000_ffffu32.to_be()
    }

    /// Whether this is `0.0.0.0` or `::`, which Linux connects to the loopback.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let w = self.to_v6();
        w[0] == 0 && w[1] == 0 && w[3] == 0 && (w[2] == 0 || w[2] == 0x0000_ffffu32.to_be())
    }

    /// Whether this is in 127.0.0.0/8 or is `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            return self.bytes[12] == 127;
        }
        let w = self.to_v6();
        w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == 1u32.to_be()
    }

    /// Whether this is an IPv6 link-local address (fe80::/10).
    #[inline(always)]
    pub const fn is_link_local_v6(self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }

    /// Whether this is a multicast or the limited broadcast address of either family.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        if self.is_v4() { self.bytes[12] >= 224 } else { self.bytes[0] == 0xff }
    }

    /// The address in the standard library's form, unmapped.
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.bytes).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self { bytes: ip.to_ipv6_mapped().octets() }
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self { bytes: ip.octets() }
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_ip().fmt(f)
    }
}

crate::plain!(Address);
