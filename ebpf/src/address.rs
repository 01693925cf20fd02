use core::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address as every map holds it: 16 bytes in network order, IPv4 in its mapped form (`::ffff:a.b.c.d`).
///
/// One form for both families, so that an IPv4-mapped `connect()` and a plain one meet the same entry.
///
/// Made, copied and compared by words: byte by byte would be most of what a packet costs in the kernel programs.
#[allow(clippy::derived_hash_with_manual_eq, reason = "the same bytes, compared faster")]
#[derive(Clone, Copy, Eq, Hash, Debug, Default)]
#[repr(C, align(4))]
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
        Self::from_v6([0, 0, 0x0000_ffffu32.to_be(), network_order])
    }

    /// An IPv6 address given as four words in network byte order, as the kernel's contexts hold it.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        // SAFETY: integers to bytes of the same size.
        Self { bytes: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) } }
    }

    /// The four words in network byte order, as the kernel's contexts hold them.
    #[inline(always)]
    pub const fn to_v6(self) -> [u32; 4] {
        // SAFETY: bytes to integers of the same size, any of which is one.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.bytes) }
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

impl Ord for Address {
    /// That of the bytes.
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.bytes).cmp(&u128::from_be_bytes(other.bytes))
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Address {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.to_v6(), other.to_v6());
        // The last word differs most often.
        a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0]
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
