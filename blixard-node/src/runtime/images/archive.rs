//! Reads a tar stream, perhaps compressed, entry by entry as it arrives, holding none of them.
//!
//! Asynchronous from end to end, which the tar crate is not: an import that is dropped leaves no
//! thread waiting for its source. Only what archives of images use: files, links, long names.

use std::io;
use std::pin::Pin;

use blixard_core::limits::IMAGE_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use tar::{EntryType, Header, PaxExtensions};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::compression::{Compression, Decompressed, MAGIC_BYTES};
use crate::platform::RuntimeError;

const BLOCK_BYTES: usize = 512;
/// Where an archive is, for errors, before its first entry.
const BEGINNING: &str = "its beginning";
/// The longest name or extended header, in bytes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// A tar stream.
pub(super) struct Archive {
    source: Source,
    /// Bytes read so far, unpacked.
    bytes: u64,
    /// Bytes of the current entry not read yet.
    remaining: u64,
    /// Bytes that fill up its last block.
    padding: u64,
    /// The current entry, for errors.
    path: String,
}

enum Source {
    Plain(Pin<Box<dyn AsyncRead + Send>>),
    Compressed(Decompressed),
}

impl Source {
    async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buf).await,
            Self::Compressed(source) => source.read(buf).await,
        }
    }

    async fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read_exact(buf).await,
            Self::Compressed(source) => source.read_exact(buf).await,
        }
    }
}

/// One entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name, normalised: without a leading `/`, without `.` and `..`.
    pub(super) path: String,
    pub(super) kind: EntryKind,
    /// The size of its content, in bytes.
    pub(super) size: u64,
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    /// The same content as another entry, by its path.
    Link(String),
    /// A directory, a device and so on: of no interest.
    Other,
}

impl Archive {
    /// Looks at the first bytes to tell how the stream is compressed.
    ///
    /// # Errors
    /// `Invalid` when it is empty, or compressed in a way that is not understood.
    pub(super) async fn open(mut source: Pin<Box<dyn AsyncRead + Send>>) -> Result<Self, RuntimeError> {
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        let start = (&mut source).take(MAGIC_BYTES as u64).read_to_end(&mut magic).await;
        start.map_err(|err| source_fault(BEGINNING, &err))?;
        if magic.is_empty() {
            return Err(RuntimeError::Invalid("the archive is empty: whatever wrote it failed".into()));
        }
        let compression = Compression::of(&magic);
        let source: Pin<Box<dyn AsyncRead + Send>> = Box::pin(io::Cursor::new(magic).chain(source));
        let source = match compression {
            Compression::Plain => Source::Plain(source),
            Compression::Unknown(name) => {
                return Err(RuntimeError::Invalid(format!(
                    "the archive is compressed with {name}: give it plain, or compressed with gzip, zstd or xz"
                )));
            }
            compression => Source::Compressed(Decompressed::new(compression, source)),
        };
        Ok(Self { source, bytes: 0, remaining: 0, padding: 0, path: BEGINNING.into() })
    }

    /// The next entry; what was not read of the current one is skipped. None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>, RuntimeError> {
        let mut long_path = None;
        let mut long_link = None;
        let mut pax_size = None;
        loop {
            self.skip().await?;
            let Some(header) = self.header().await? else { return Ok(None) };
            let fault = |what: &str| {
                RuntimeError::Invalid(format!("not an image archive: {what} after {}", self.path))
            };
            self.remaining = header.entry_size().map_err(|_| fault("a tar header without a size"))?;
            let kind = header.entry_type();
            if let Some(size) = pax_size.filter(|_| !is_extension(kind)) {
                self.remaining = size;
            }
            if self.remaining > IMAGE_BYTES_MAX {
                return Err(fault("a file of impossible size"));
            }
            self.padding = self.remaining.wrapping_neg() % BLOCK_BYTES as u64;
            match kind {
                EntryType::GNULongName => long_path = Some(self.extension_text().await?),
                EntryType::GNULongLink => long_link = Some(self.extension_text().await?),
                EntryType::XHeader => {
                    let bytes = self.extension().await?;
                    for record in PaxExtensions::new(&bytes).flatten() {
                        match (record.key(), record.value()) {
                            (Ok("path"), Ok(value)) => long_path = Some(value.to_owned()),
                            (Ok("linkpath"), Ok(value)) => long_link = Some(value.to_owned()),
                            (Ok("size"), Ok(value)) => pax_size = value.parse().ok(),
                            _ => {}
                        }
                    }
                }
                EntryType::XGlobalHeader => {}
                kind => {
                    let own = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let path = normalise(&long_path.unwrap_or_else(|| own(&header.path_bytes())));
                    let link =
                        || long_link.unwrap_or_else(|| own(&header.link_name_bytes().unwrap_or_default()));
                    let kind = match kind {
                        EntryType::Regular | EntryType::Continuous => EntryKind::File,
                        EntryType::Link => EntryKind::Link(normalise(&link())),
                        EntryType::Symlink => EntryKind::Link(beside(&path, &link())),
                        _ => EntryKind::Other,
                    };
                    self.path.clone_from(&path);
                    return Ok(Some(Entry { path, kind, size: self.remaining }));
                }
            }
        }
    }

    /// The next bytes of the current entry, at most `bytes_max`; none at its end.
    pub(super) async fn chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, RuntimeError> {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes_max);
        if wanted == 0 {
            return Ok(None);
        }
        self.count(wanted)?;
        let mut chunk = BytesMut::zeroed(wanted);
        self.source.read_exact(&mut chunk).await.map_err(|err| source_fault(&self.path, &err))?;
        self.remaining -= wanted as u64;
        Ok(Some(chunk.freeze()))
    }

    /// The current entry's whole content.
    pub(super) async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, RuntimeError> {
        if self.remaining > bytes_max as u64 {
            return Err(RuntimeError::Invalid(format!(
                "not an image archive: {} is {} bytes long, at most {bytes_max} are read",
                self.path, self.remaining
            )));
        }
        Ok(self.chunk(bytes_max).await?.unwrap_or_default())
    }

    /// Reads what follows the end, so that the sender is not cut off. What it is does not matter.
    pub(super) async fn drain(self) {
        let mut rest = match self.source {
            Source::Plain(source) => source,
            Source::Compressed(source) => source.into_source(),
        };
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    }

    fn count(&mut self, bytes: usize) -> Result<(), RuntimeError> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > IMAGE_BYTES_MAX {
            return Err(RuntimeError::Invalid(format!(
                "the archive unpacks to more than the {IMAGE_BYTES_MAX} bytes that are read, in {}",
                self.path
            )));
        }
        Ok(())
    }

    async fn skip(&mut self) -> Result<(), RuntimeError> {
        let mut left = self.remaining + self.padding;
        let mut scratch = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(64 << 10)];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            self.count(part)?;
            let read = self.source.read_exact(&mut scratch[..part]).await;
            read.map_err(|err| source_fault(&self.path, &err))?;
            left -= part as u64;
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; none at the end, marked or not.
    async fn header(&mut self) -> Result<Option<Header>, RuntimeError> {
        self.count(BLOCK_BYTES)?;
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let read = self.source.read(&mut block[filled..]).await;
            match read.map_err(|err| source_fault(&self.path, &err))? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(source_fault(&self.path, &io::ErrorKind::UnexpectedEof.into())),
                read => filled += read,
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let summed: u32 = block[..148].iter().chain(&block[156..]).map(|&byte| u32::from(byte)).sum();
        let sum = summed + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            return Err(RuntimeError::Invalid(format!(
                "not an image archive: no tar header where one should be, after {}",
                self.path
            )));
        }
        Ok(Some(header))
    }

    async fn extension(&mut self) -> Result<Bytes, RuntimeError> {
        self.whole(usize::try_from(EXTENSION_BYTES_MAX).unwrap_or(usize::MAX)).await
    }

    async fn extension_text(&mut self) -> Result<String, RuntimeError> {
        let bytes = self.extension().await?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

fn is_extension(kind: EntryType) -> bool {
    kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions()
}

/// A path from the archive's root in the one form that entries are known by.
pub(super) fn normalise(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a symbolic link at `path` points to, as a path from the archive's root.
fn beside(path: &str, link: &str) -> String {
    if link.starts_with('/') { normalise(link) } else { normalise(&format!("{path}/../{link}")) }
}

fn source_fault(path: &str, err: &io::Error) -> RuntimeError {
    match err.kind() {
        io::ErrorKind::UnexpectedEof => RuntimeError::Invalid(format!(
            "the archive ends too early, in {path}: it is incomplete, or no archive of an image"
        )),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            RuntimeError::Invalid(format!("the archive is damaged or incomplete, in {path}: {err}"))
        }
        _ => RuntimeError::Unavailable(format!("cannot read the archive, in {path}: {err}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    async fn entries(bytes: &[u8]) -> Result<Vec<(String, EntryKind, Vec<u8>)>, RuntimeError> {
        let mut archive = Archive::open(Box::pin(io::Cursor::new(bytes.to_vec()))).await?;
        let mut entries = Vec::new();
        while let Some(entry) = archive.next().await? {
            let mut content = Vec::new();
            while let Some(chunk) = archive.chunk(700).await? {
                content.extend_from_slice(&chunk);
            }
            assert_eq!(content.len() as u64, entry.size);
            entries.push((entry.path, entry.kind, content));
        }
        archive.drain().await;
        Ok(entries)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: EntryType, content: &[u8], link: Option<&str>| {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_entry_type(kind);
            match link {
                Some(link) => builder.append_link(&mut header, path, link),
                None => builder.append_data(&mut header, path, content),
            }
            .expect("into memory");
        };
        add("./a/", EntryType::Directory, b"", None);
        add("a/layer.tar", EntryType::Regular, &[7; 1500], None);
        add("b/layer.tar", EntryType::Symlink, b"", Some("../a/layer.tar"));
        add("c", EntryType::Link, b"", Some("./b/../a/layer.tar"));
        add(&"long/".repeat(40), EntryType::Regular, b"x", None);
        add("empty", EntryType::Regular, b"", None);
        builder.into_inner().expect("into memory")
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("into memory");
        encoder.finish().expect("into memory")
    }

    #[tokio::test]
    async fn entries_come_out_as_they_went_in() {
        let plain = entries(&sample()).await.expect("valid");
        let expect = [
            ("a".to_owned(), EntryKind::Other, vec![]),
            ("a/layer.tar".into(), EntryKind::File, vec![7; 1500]),
            ("b/layer.tar".into(), EntryKind::Link("a/layer.tar".into()), vec![]),
            ("c".into(), EntryKind::Link("a/layer.tar".into()), vec![]),
            ("long/".repeat(40).trim_end_matches('/').to_owned(), EntryKind::File, b"x".to_vec()),
            ("empty".into(), EntryKind::File, vec![]),
        ];
        assert_eq!(plain, expect);
        assert_eq!(entries(&gzipped(&sample())).await.expect("valid"), plain);
    }

    #[tokio::test]
    async fn sizes_that_no_archive_has_are_refused() {
        let check = async |size: u64, extended: &str| {
            let mut header = Header::new_gnu();
            header.set_path("blob").expect("short");
            header.set_size(size);
            header.set_cksum();
            let mut bytes = Vec::new();
            if !extended.is_empty() {
                let record = format!("{} size={extended}\n", extended.len() + 9);
                let mut pax = Header::new_ustar();
                pax.set_entry_type(EntryType::XHeader);
                pax.set_size(record.len() as u64);
                pax.set_cksum();
                bytes.extend_from_slice(pax.as_bytes());
                bytes.extend_from_slice(format!("{record:\0<512}").as_bytes());
            }
            bytes.extend_from_slice(header.as_bytes());
            bytes.resize(bytes.len() + 1024, 0);
            let error = entries(&bytes).await.expect_err("refused");
            assert!(error.to_string().contains("impossible size"), "{error}");
        };
        check(u64::MAX, "").await;
        check(u64::MAX - 100, "").await;
        check(IMAGE_BYTES_MAX + 1, "").await;
        check(0, "18446744073709551615").await;
    }

    #[tokio::test]
    async fn a_compression_that_is_not_understood_is_named() {
        let error = entries(b"BZh91AY&SY").await.expect_err("refused");
        assert!(error.to_string().contains("compressed with bzip2"), "{error}");
    }

    #[tokio::test]
    async fn damage_is_told_from_trouble() {
        let check = async |bytes: &[u8], expect: &str| {
            let error = entries(bytes).await.expect_err(expect);
            assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");
            assert!(error.to_string().contains(expect), "{error}");
        };
        check(&sample()[..1400], "ends too early, in a/layer.tar").await;
        check(&sample()[..700], "ends too early").await;
        check(b"this is no archive", "ends too early").await;
        check(&[b'x'; 2048], "no tar header").await;
        let packed = gzipped(&sample());
        check(&packed[..packed.len() / 2], "ends too early").await;
        let mut damaged = packed.clone();
        for byte in &mut damaged[10..30] {
            *byte ^= 0x5a;
        }
        check(&damaged, "damaged or incomplete").await;
        check(b"", "the archive is empty").await;
    }

    #[test]
    fn archives_survive_every_damage() {
        let seeds = [sample(), gzipped(&sample())];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        damage::survives("archive of images", &seeds, |input| {
            let entries = runtime.block_on(entries(input)).map_err(|error| error.to_string())?;
            for (path, kind, content) in entries {
                let leads_out =
                    |path: &str| path.starts_with('/') || path.contains("//") || path.ends_with('/');
                assert!(!leads_out(&path), "{path}");
                if let EntryKind::Link(target) = kind {
                    assert!(!leads_out(&target), "{target}");
                }
                // No more than deflate can make of it.
                assert!(content.len() <= 1_032 * input.len());
            }
            Ok(())
        });
    }
}
