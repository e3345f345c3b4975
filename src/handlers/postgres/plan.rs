//! Which columns are written and from what, as configured; the table that would fit; an event's values.
//!
//! Knows the message's declaration and no server. Every value travels as text, in the form that the proto3 JSON mapping
//! gives it and that PostgreSQL reads for the column's own type, so that any type of column can be written.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;

use crate::ladder::event::Failure;
use crate::messages::Decoder;
use crate::stage::ports::Event;

/// What can be written beside fields of the message.
const SPECIALS: &str = "$event_id, $key, $json, $topic, $partition, $offset, $timestamp, $header.<name>";
/// When a row was inserted: part of tables that are created here, written by the server.
const INSERTED_AT: &str = "inserted_at";

/// What is wrong with the configured table or columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}; right would be: {remedy}")]
pub struct Fault {
    /// Key below the handler's, like `columns.amount`.
    pub key: String,
    /// What it holds.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

/// Table, columns and their sources.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The table's name as SQL, quoted.
    pub(super) table: String,
    pub(super) columns: Vec<Column>,
    /// Index of the column that holds the event's id.
    pub(super) id: usize,
    decoder: Decoder,
    /// Whether any column is a field: else the message need not be decoded.
    has_fields: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) shape: Shape,
    source: Source,
}

#[derive(Clone, Debug, PartialEq)]
enum Source {
    EventId,
    Key,
    Json,
    Topic,
    Partition,
    Offset,
    Timestamp,
    Header(String),
    /// Field names from the message down.
    Field(Vec<String>),
}

/// What values look like, which says what types of column can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    /// Text, or in a column for them any bytes: keys and headers.
    Raw,
    Bool,
    Int32,
    Int64,
    Uint64,
    Float,
    Double,
    Bytes,
    Time,
    Duration,
    /// Lists, maps, messages.
    Json,
}

/// One value of an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Datum {
    /// As JSON has it; null where there is none.
    Json(Value),
    /// Perhaps text.
    Raw(Vec<u8>),
}

impl Shape {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Text | Shape::Raw => "a text",
            Shape::Bool => "a boolean",
            Shape::Int32 | Shape::Int64 | Shape::Uint64 => "an integer",
            Shape::Float | Shape::Double => "a floating-point number",
            Shape::Bytes => "bytes",
            Shape::Time => "a timestamp",
            Shape::Duration => "a duration",
            Shape::Json => "a list, map or message",
        }
    }

    /// The type of a column made for it.
    fn sql(self) -> &'static str {
        match self {
            Shape::Text | Shape::Raw => "text",
            Shape::Bool => "boolean",
            Shape::Int32 => "integer",
            Shape::Int64 => "bigint",
            Shape::Uint64 => "numeric(20)",
            Shape::Float => "real",
            Shape::Double => "double precision",
            Shape::Bytes => "bytea",
            Shape::Time => "timestamptz",
            Shape::Duration => "interval",
            Shape::Json => "jsonb",
        }
    }

    fn of(field: &FieldDescriptor) -> Self {
        if field.is_list() || field.is_map() { Shape::Json } else { Self::of_kind(&field.kind()) }
    }

    fn of_kind(kind: &Kind) -> Self {
        match kind {
            Kind::String | Kind::Enum(_) => Shape::Text,
            Kind::Bool => Shape::Bool,
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Shape::Int32,
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint32 | Kind::Fixed32 => Shape::Int64,
            Kind::Uint64 | Kind::Fixed64 => Shape::Uint64,
            Kind::Float => Shape::Float,
            Kind::Double => Shape::Double,
            Kind::Bytes => Shape::Bytes,
            Kind::Message(message) => match message.full_name() {
                "google.protobuf.Timestamp" => Shape::Time,
                "google.protobuf.Duration" => Shape::Duration,
                // A value that may be missing: in JSON the value itself.
                name if name.starts_with("google.protobuf.") && name.ends_with("Value") && name.len() > 21 => {
                    message.get_field_by_name("value").map_or(Shape::Json, |inner| Self::of(&inner))
                }
                _ => Shape::Json,
            },
        }
    }
}

impl Plan {
    /// The plan of `table` (without one: the message's name) and `columns`, from name to source (without any: one for the
    /// event's id and one for each field of the message).
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn new(decoder: Decoder, table: Option<&str>, columns: &BTreeMap<String, String>) -> Result<Self, Vec<Fault>> {
        let message = decoder.descriptor();
        let mut faults = Vec::new();
        let mut fault = |key: String, value: &str, problem: &str, remedy: String| {
            faults.push(Fault { key, value: Some(value.to_owned()), problem: problem.to_owned(), remedy });
        };
        let derived = snake_case(message.name());
        let table = table.unwrap_or(&derived);
        let parts: Vec<&str> = table.split('.').collect();
        if parts.len() > 2 || parts.iter().any(|part| !is_name(part)) {
            fault(
                "table".into(),
                table,
                "not the name of a table",
                "a name, or schema and name, like `audit.orders`".into(),
            );
        }
        let columns = if columns.is_empty() { default_columns(message) } else { columns.clone().into_iter().collect() };
        let mut built = Vec::new();
        for (name, source) in columns {
            let key = format!("columns.{name}");
            if !is_name(&name) {
                fault(key, &name, "not the name of a column", "1 to 63 bytes of text".into());
                continue;
            }
            match Source::parse(&source, message) {
                Ok((source, shape)) => built.push(Column { name, shape, source }),
                Err(problem) => {
                    fault(key, &source, &problem, format!("a field of {}, or one of {SPECIALS}", message.full_name()))
                }
            }
        }
        let ids: Vec<_> =
            built.iter().enumerate().filter(|(_, c)| c.source == Source::EventId).map(|(i, _)| i).collect();
        if faults.is_empty() && ids.len() != 1 {
            let problem = format!("{} columns hold $event_id, by which a row is written once", ids.len());
            let remedy = "exactly one, like `event_id: $event_id`, with a unique index".to_owned();
            faults.push(Fault { key: "columns".into(), value: None, problem, remedy });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            table: parts.iter().map(|part| quoted(part)).collect::<Vec<_>>().join("."),
            id: ids[0],
            has_fields: built.iter().any(|c| matches!(c.source, Source::Field(_))),
            columns: built,
            decoder,
        })
    }

    /// SQL that makes the table where it is missing, and the columns that it lacks. Drops and changes nothing.
    pub fn migration(&self) -> String {
        let column = |(i, c): (usize, &Column)| {
            let key = if i == self.id { " primary key" } else { "" };
            format!("  {} {}{key}", quoted(&c.name), c.shape.sql())
        };
        let mut columns: Vec<_> = self.columns.iter().enumerate().map(column).collect();
        if self.columns.iter().all(|c| c.name != INSERTED_AT) {
            columns.push(format!("  {} timestamptz not null default now()", quoted(INSERTED_AT)));
        }
        let mut sql = format!("create table if not exists {} (\n{}\n);\n", self.table, columns.join(",\n"));
        for column in self.columns.iter().enumerate().filter(|(i, _)| *i != self.id).map(|(_, c)| c) {
            let (name, ty) = (quoted(&column.name), column.shape.sql());
            sql.push_str(&format!("alter table {} add column if not exists {name} {ty};\n", self.table));
        }
        sql
    }

    /// An event's values, one for each column.
    ///
    /// # Errors
    /// When the event can have no row.
    pub(super) fn values(&self, event: &Event) -> Result<Vec<Datum>, Failure> {
        if event.record.value.is_none() {
            return Err(Failure::permanent("a null value (a tombstone) has nothing to write"));
        }
        let fields = match self.has_fields {
            true => self.decoder.to_fields(&event.payload).map_err(|e| Failure::poison(e.to_string()))?,
            false => Value::Null,
        };
        self.columns.iter().map(|column| self.value(column, event, &fields)).collect()
    }

    fn value(&self, column: &Column, event: &Event, fields: &Value) -> Result<Datum, Failure> {
        let origin = &event.origin;
        let raw = |bytes: Option<&[u8]>| bytes.map_or(Datum::Json(Value::Null), |bytes| Datum::Raw(bytes.to_vec()));
        Ok(Datum::Json(match &column.source {
            Source::Key => return Ok(raw(event.record.key.as_deref())),
            Source::Header(name) => return Ok(raw(event.header(name))),
            Source::EventId => Value::from(&*event.id),
            Source::Json => {
                let json = self.decoder.to_json(&event.payload).map_err(|e| Failure::poison(e.to_string()))?;
                serde_json::from_str(&json).map_err(|e| Failure::poison(e.to_string()))?
            }
            Source::Topic => Value::from(origin.topic.as_str()),
            Source::Partition => Value::from(origin.partition),
            Source::Offset => Value::from(origin.offset),
            Source::Timestamp => u64::try_from(origin.timestamp_ms).map_or(Value::Null, |ms| {
                Value::from(humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string())
            }),
            Source::Field(path) => {
                let found = path.iter().try_fold(fields, |value, name| value.get(name));
                found.cloned().unwrap_or_default()
            }
        }))
    }
}

impl Source {
    fn parse(text: &str, message: &MessageDescriptor) -> Result<(Self, Shape), String> {
        Ok(match text {
            "$event_id" => (Source::EventId, Shape::Text),
            "$key" => (Source::Key, Shape::Raw),
            "$json" => (Source::Json, Shape::Json),
            "$topic" => (Source::Topic, Shape::Text),
            "$partition" => (Source::Partition, Shape::Int32),
            "$offset" => (Source::Offset, Shape::Int64),
            "$timestamp" => (Source::Timestamp, Shape::Time),
            _ => match text.strip_prefix("$header.") {
                Some(name) if !name.is_empty() => (Source::Header(name.to_owned()), Shape::Raw),
                _ if text.starts_with('$') => return Err("not known".to_owned()),
                _ => return Self::field(text, message),
            },
        })
    }

    fn field(path: &str, message: &MessageDescriptor) -> Result<(Self, Shape), String> {
        let mut message = message.clone();
        let mut names = Vec::new();
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let field = message.get_field_by_name(step).or_else(|| message.get_field_by_json_name(step));
            let Some(field) = field else {
                return Err(format!("{} has no field `{step}`", message.full_name()));
            };
            names.push(field.name().to_owned());
            match (steps.peek(), field.kind()) {
                (None, _) => return Ok((Source::Field(names), Shape::of(&field))),
                // What JSON writes in a form of its own has no fields there.
                (Some(_), Kind::Message(inner))
                    if !field.is_list() && !field.is_map() && inner.package_name() != "google.protobuf" =>
                {
                    message = inner;
                }
                _ => return Err(format!("`{step}` has no fields of its own that could be named")),
            }
        }
        Err("empty".to_owned())
    }
}

/// The event's id, then every field, by number.
fn default_columns(message: &MessageDescriptor) -> Vec<(String, String)> {
    let id = if message.get_field_by_name("event_id").is_some() { "ladder_event_id" } else { "event_id" };
    let fields = message.fields().map(|f| (f.name().to_owned(), f.name().to_owned()));
    std::iter::once((id.to_owned(), "$event_id".to_owned())).chain(fields).collect()
}

/// What PostgreSQL takes for a name once it is quoted; longer ones it would cut.
fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('\0')
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `PipelineStep` is `pipeline_step`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Framing;

    fn plan(message: &str, columns: &[(&str, &str)]) -> Result<Plan, Vec<Fault>> {
        let decoder = Decoder::new(message, None, Framing::Plain).unwrap();
        let columns = columns.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
        Plan::new(decoder, None, &columns)
    }

    #[test]
    fn without_columns_there_is_one_for_the_id_and_for_each_field_of_the_type_that_fits() {
        let sql = plan("ml.v1.PipelineStep", &[]).unwrap().migration();
        let table =
            "create table if not exists \"pipeline_step\" (\n  \"event_id\" text primary key,\n  \"unique_id\" text,\n";
        assert!(sql.starts_with(table), "{sql}");
        for column in [
            "\"status\" text,",
            "\"metrics\" jsonb,",
            "\"created_at\" timestamptz,",
            "\"elapsed\" interval,",
            "\"attempt\" bigint,",
            "\"artifact_uris\" jsonb,",
            "\"inserted_at\" timestamptz not null default now()\n);",
            "alter table \"pipeline_step\" add column if not exists \"metrics\" jsonb;",
        ] {
            assert!(sql.contains(column), "{column} is not in {sql}");
        }
        assert!(!sql.contains("add column if not exists \"event_id\""), "{sql}");
    }

    #[test]
    fn columns_that_cannot_be_written_are_told_together() {
        let columns = [("a", "$event"), ("b", "metrics.loss"), ("c", "nothing"), ("d", "created_at.seconds")];
        let faults: Vec<_> =
            plan("ml.v1.PipelineStep", &columns).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 4, "{faults:?}");
        for (fault, part) in faults.iter().zip([
            "columns.a: not known; right would be: a field of ml.v1.PipelineStep, or one of $event_id, $key",
            "columns.b: `metrics` has no fields of its own",
            "columns.c: ml.v1.PipelineStep has no field `nothing`",
            "columns.d: `created_at` has no fields of its own",
        ]) {
            assert!(fault.contains(part), "{fault}");
        }
    }

    #[test]
    fn exactly_one_column_holds_the_id() {
        for (columns, count) in
            [(&[("run", "run_id")][..], 0), (&[("a", "$event_id"), ("b", "$event_id"), ("run", "run_id")], 2)]
        {
            let faults = plan("ml.v1.PipelineStep", columns).unwrap_err();
            assert!(faults[0].problem.starts_with(&format!("{count} columns hold $event_id")), "{faults:?}");
        }
    }

    #[test]
    fn names_of_tables_are_quoted_with_their_schema_and_derived_in_snake_case() {
        let decoder = Decoder::new("shop.v1.OrderPlaced", None, Framing::Plain).unwrap();
        let named = |table| Plan::new(decoder.clone(), table, &BTreeMap::new());
        assert_eq!(named(None).unwrap().table, "\"order_placed\"");
        assert_eq!(named(Some("audit.Or\"ders")).unwrap().table, "\"audit\".\"Or\"\"ders\"");
        for wrong in ["", "a.b.c", "a.", &"x".repeat(64)] {
            assert_eq!(named(Some(wrong)).unwrap_err()[0].key, "table", "{wrong}");
        }
    }
}
