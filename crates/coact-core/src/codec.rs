//! How coact writes numbers, bytes and headers where the form is its own: varints, and bytes after their length.

use bytes::{Buf, BufMut, Bytes};

/// Writes a number in groups of seven bits, the lowest first.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Reads a number; `None` if there is none, or one of more than 64 bits.
pub fn get_varint(from: &mut Bytes) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = from.has_remaining().then(|| from.get_u8())?;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Writes bytes after their length.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Reads bytes, which share the memory that they are read from; `None` if there are fewer than their length says.
pub fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = get_varint(from)?;
    take(from, length)
}

/// Reads so many bytes, which share the memory that they are read from.
pub(crate) fn take(from: &mut Bytes, length: u64) -> Option<Bytes> {
    let length = usize::try_from(length).ok()?;
    (length <= from.len()).then(|| from.split_to(length))
}

/// Writes the names and values of headers after their count.
pub fn put_headers(out: &mut impl BufMut, headers: &[(String, Bytes)]) {
    put_varint(out, headers.len() as u64);
    for (name, value) in headers {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value);
    }
}

/// Reads headers; `None` if they are none.
pub fn get_headers(from: &mut Bytes) -> Option<Vec<(String, Bytes)>> {
    let mut headers = Vec::new();
    for _ in 0..get_varint(from)? {
        let name = String::from_utf8(get_bytes(from)?.to_vec()).ok()?;
        headers.push((name, get_bytes(from)?));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back(number: u64, rest: u8) {
            let mut out = BytesMut::new();
            put_varint(&mut out, number);
            out.put_u8(rest);
            let mut from = out.freeze();
            prop_assert_eq!(get_varint(&mut from), Some(number));
            prop_assert_eq!(&from[..], &[rest]);
        }
    }

    #[test]
    fn what_is_no_number_is_none() {
        for wrong in [
            &b""[..],
            b"\x80",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",
        ] {
            assert_eq!(get_varint(&mut Bytes::copy_from_slice(wrong)), None, "{wrong:?}");
        }
        assert_eq!(get_bytes(&mut Bytes::from_static(b"\x03ab")), None);
    }
}
