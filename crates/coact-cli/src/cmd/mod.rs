//! The commands, one file each.

pub(crate) mod again;
pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod dir;
pub(crate) mod doctor;
pub(crate) mod elect;
pub(crate) mod explain;
pub(crate) mod filter;
pub(crate) mod guarantees;
pub(crate) mod hold;
pub(crate) mod id;
pub(crate) mod init;
pub(crate) mod kv;
pub(crate) mod lock;
pub(crate) mod mq;
pub(crate) mod queue;
pub(crate) mod role;
pub(crate) mod rw;
pub(crate) mod sem;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod tour;

/// Reads a duration argument.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    coact::url::parse_duration(text).ok_or_else(|| "use a number with a unit: 250ms, 10s, 5m, 1h".to_owned())
}

/// Reads a number of bytes: 4096, 500MB, 1GiB.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let cut = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: Option<u64> = match &text[cut..] {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "TB" => Some(1_000_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        _ => None,
    };
    let number = text[..cut].parse::<u64>().ok();
    number
        .zip(unit)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .ok_or_else(|| "use a number of bytes, with or without a unit: 4096, 500MB, 1GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_ten_and_of_two() {
        for (text, number) in [("0", 0), ("12", 12), ("12B", 12), ("3MB", 3_000_000), ("2GiB", 2 << 30)] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for wrong in ["", "MB", "1.5GiB", "-1", "1gb", "99999999999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
