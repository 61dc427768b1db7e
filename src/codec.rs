//! Values to bytes and back.
//!
//! Logs carry bytes; a [`Codec`] says what they mean. `Postcard` (feature `postcard`, default) takes
//! every `serde` type, [`Bytes`] takes bytes as they are.

use crate::error::{PersistenceError, PersistenceResult};
use std::io::Write;

/// How values of type `T` become bytes.
pub trait Codec<T> {
    /// Writes `value` to `out`. An error leaves nothing appended.
    fn encode(&self, value: &T, out: &mut dyn Write) -> PersistenceResult<()>;

    /// Reads a value. All of `bytes` belong to it.
    fn decode(&self, bytes: &[u8]) -> PersistenceResult<T>;
}

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes;

impl Codec<Vec<u8>> for Bytes {
    fn encode(&self, value: &Vec<u8>, out: &mut dyn Write) -> PersistenceResult<()> {
        out.write_all(value).map_err(|error| PersistenceError::Encode { reason: error.to_string() })
    }

    fn decode(&self, bytes: &[u8]) -> PersistenceResult<Vec<u8>> {
        Ok(bytes.to_vec())
    }
}

/// The `postcard` encoding of `serde` types.
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl Postcard {
    /// [`Codec::encode`], for types that can only be written.
    pub fn write<T: serde::Serialize + ?Sized>(value: &T, out: &mut dyn Write) -> PersistenceResult<()> {
        match postcard::to_io(value, out) {
            Ok(_) => Ok(()),
            Err(error) => Err(PersistenceError::Encode { reason: error.to_string() }),
        }
    }

    /// [`Codec::decode`], for types that can only be read.
    pub fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> PersistenceResult<T> {
        let failed = |reason: String| PersistenceError::Decode { entry_id: None, reason };
        let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| failed(error.to_string()))?;
        if rest.is_empty() { Ok(value) } else { Err(failed(format!("{} bytes are left over", rest.len()))) }
    }
}

#[cfg(feature = "postcard")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Postcard {
    fn encode(&self, value: &T, out: &mut dyn Write) -> PersistenceResult<()> {
        Self::write(value, out)
    }

    fn decode(&self, bytes: &[u8]) -> PersistenceResult<T> {
        Self::read(bytes)
    }
}

#[cfg(all(test, feature = "postcard"))]
mod tests {
    use super::*;

    #[test]
    fn bytes_left_over_are_not_a_value() {
        let mut bytes = Vec::new();
        Postcard.encode(&(7u32, "seven".to_string()), &mut bytes).expect("encodes");
        assert_eq!(
            Codec::<(u32, String)>::decode(&Postcard, &bytes).expect("decodes"),
            (7, "seven".to_string())
        );
        bytes.push(0);
        assert!(matches!(
            Codec::<(u32, String)>::decode(&Postcard, &bytes),
            Err(PersistenceError::Decode { .. })
        ));
    }
}
