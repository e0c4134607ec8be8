//! Rows as Parquet. The layout, version 1, is documented in `docs/fleet.md`; what is added later is optional.

use std::io::Write;
use std::iter::repeat_n;
use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::ColumnPath;

use super::rows::PageRow;

/// The columns.
const SCHEMA: &str = "
message runs {
    required binary host (UTF8);
    optional binary boot_id (UTF8);
    required int64 ts (TIMESTAMP(MICROS, true));
    required binary kernel (UTF8);
    required int32 page_bytes;
    required int32 descriptor_bytes;
    optional boolean hvo;
    optional int64 memmap_pages;
    optional int32 node;
    optional binary zone (UTF8);
    required int64 start_pfn;
    required int64 pages;
    required binary state (UTF8);
    required int32 folio_order;
    optional boolean optimised;
}";
/// Of the layout.
pub const VERSION: &str = "1";
/// Rows in a row group: what is kept in memory at a time.
const GROUP: usize = 1 << 17;

/// What all rows of a file have in common.
#[derive(Clone, Debug, Default)]
pub struct Common {
    pub host: String,
    pub boot_id: Option<String>,
    /// Microseconds since 1970.
    pub ts: i64,
    pub kernel: String,
    pub page_bytes: u64,
    pub descriptor_bytes: u64,
    /// Whether HVO is on; `None` where nothing tells.
    pub hvo: Option<bool>,
    /// Pages of descriptors, as the kernel counts them.
    pub memmap_pages: Option<u64>,
}

/// Writes rows. Returns how many.
///
/// # Errors
/// `to` cannot be written.
pub fn write<'m>(
    to: impl Write + Send,
    common: &Common,
    mut rows: impl Iterator<Item = PageRow<'m>>,
) -> Result<u64, ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let version = KeyValue::new("pagefold.layout".to_owned(), VERSION.to_owned());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        // Ascending numbers: differences are short, and no dictionary helps.
        .set_column_dictionary_enabled(ColumnPath::from("start_pfn"), false)
        .set_column_encoding(ColumnPath::from("start_pfn"), Encoding::DELTA_BINARY_PACKED)
        .set_key_value_metadata(Some(vec![version]))
        .set_created_by(concat!("pagefold ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut file = SerializedFileWriter::new(to, schema, Arc::new(properties))?;
    let mut written = 0;
    loop {
        let group: Vec<PageRow<'_>> = rows.by_ref().take(GROUP).collect();
        if group.is_empty() {
            break;
        }
        written += group.len() as u64;
        let mut writer = file.next_row_group()?;
        columns(&mut writer, common, &group)?;
        writer.close()?;
    }
    file.close()?;
    Ok(written)
}

/// Writes a row group, column by column, in the order of the schema.
fn columns<W: Write + Send>(
    to: &mut SerializedRowGroupWriter<'_, W>,
    common: &Common,
    rows: &[PageRow<'_>],
) -> Result<(), ParquetError> {
    let long = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let int = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
    let all = |text: &str| vec![ByteArray::from(text); rows.len()];
    let optimised = rows.iter().map(|row| row.optimised);
    let states: Vec<_> = rows.iter().map(|row| ByteArray::from(row.state.name())).collect();
    let zone_names = rows.iter().map(|row| row.zone.map(|zone| ByteArray::from(zone.name.as_str())));
    let nodes = rows.iter().map(|row| row.zone.map(|zone| int(zone.node.into())));
    let boot_id = common.boot_id.as_deref().map(ByteArray::from);
    let memmap_pages = common.memmap_pages.map(long);

    column::<ByteArrayType>(to, &all(&common.host), None)?;
    optional::<ByteArrayType>(to, repeat_n(boot_id, rows.len()))?;
    column::<Int64Type>(to, &vec![common.ts; rows.len()], None)?;
    column::<ByteArrayType>(to, &all(&common.kernel), None)?;
    column::<Int32Type>(to, &vec![int(common.page_bytes); rows.len()], None)?;
    column::<Int32Type>(to, &vec![int(common.descriptor_bytes); rows.len()], None)?;
    optional::<BoolType>(to, repeat_n(common.hvo, rows.len()))?;
    optional::<Int64Type>(to, repeat_n(memmap_pages, rows.len()))?;
    optional::<Int32Type>(to, nodes)?;
    optional::<ByteArrayType>(to, zone_names)?;
    column::<Int64Type>(to, &rows.iter().map(|row| long(row.start)).collect::<Vec<_>>(), None)?;
    column::<Int64Type>(to, &rows.iter().map(|row| long(row.pages)).collect::<Vec<_>>(), None)?;
    column::<ByteArrayType>(to, &states, None)?;
    column::<Int32Type>(to, &rows.iter().map(|row| int(row.order.into())).collect::<Vec<_>>(), None)?;
    optional::<BoolType>(to, optimised)
}

/// Writes the next column: the values that there are, and for each row whether it has one, unless all have.
fn column<T: DataType>(
    to: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let missing = || ParquetError::General("more columns than the schema has".into());
    let mut column = to.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}

/// Writes the next column, which not all rows have a value of.
fn optional<T: DataType>(
    to: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let mut levels = Vec::new();
    let values: Vec<_> = values.inspect(|value| levels.push(i16::from(value.is_some()))).flatten().collect();
    column::<T>(to, &values, Some(&levels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::RowAccessor;
    use pagefold_machine::{PageState, ZoneRecord};

    #[test]
    fn what_is_written_is_read() {
        let zone = ZoneRecord { node: 3, name: "Movable".into(), ..ZoneRecord::default() };
        let row = |start, zone, optimised| PageRow {
            zone,
            start,
            pages: start + 1,
            state: PageState::Hugetlb,
            order: 9,
            optimised,
        };
        let rows = [row(0, None, None), row(512, Some(&zone), Some(true)), row(1 << 39, None, Some(false))];
        let common = Common { host: "web7".into(), hvo: Some(true), ..Common::default() };
        let mut bytes = Vec::new();
        assert_eq!(write(&mut bytes, &common, rows.iter().cloned()).unwrap(), 3);
        let file = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let metadata = file.metadata().file_metadata();
        assert_eq!(metadata.key_value_metadata().unwrap()[0].value.as_deref(), Some(VERSION));
        let read: Vec<_> = file.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read.len(), 3);
        for (read, row) in read.iter().zip(&rows) {
            assert_eq!(read.get_string(0).unwrap(), "web7");
            assert!(read.get_string(1).is_err(), "no boot id");
            assert!(read.get_bool(6).unwrap());
            assert_eq!(read.get_int(8).ok(), row.zone.map(|_| 3));
            assert_eq!(read.get_string(9).ok().map(String::as_str), row.zone.map(|_| "Movable"));
            assert_eq!(read.get_long(10).unwrap() as u64, row.start);
            assert_eq!(read.get_long(11).unwrap() as u64, row.pages);
            assert_eq!(read.get_string(12).unwrap(), "hugetlb");
            assert_eq!(read.get_int(13).unwrap(), 9);
            assert_eq!(read.get_bool(14).ok(), row.optimised);
        }
    }

    #[test]
    fn no_rows_are_a_file() {
        let common = Common {
            boot_id: Some(String::new()),
            page_bytes: u64::MAX,
            memmap_pages: Some(u64::MAX),
            ..Common::default()
        };
        let mut bytes = Vec::new();
        assert_eq!(write(&mut bytes, &common, std::iter::empty()).unwrap(), 0);
        assert!(bytes.starts_with(b"PAR1"));
    }
}
