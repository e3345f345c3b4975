//! The table as the server has it: its columns' types, checked against the plan once at start, and each value against its
//! column before it is sent.
//!
//! What is found here need not be found by the server in the middle of a batch. Invariant: a value that passes has the
//! form that the statement's casts read; whether the server takes it is still the server's to say.

use serde_json::Value;
use tokio_postgres::Client;

use super::plan::{Column, Datum, Plan, Shape, quoted};
use crate::ladder::event::Failure;
use crate::telemetry::traces::base64;

/// What kinds of types are told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Bool,
    /// From and to.
    Integer(i64, i64),
    Number,
    Text,
    Bytes,
    Json,
    Time,
    Interval,
    /// Enums, uuid, inet and what else can be written as text.
    Other,
}

impl Family {
    fn of(type_name: &str) -> Self {
        match type_name {
            "bool" => Family::Bool,
            "int2" => Family::Integer(i16::MIN.into(), i16::MAX.into()),
            "int4" => Family::Integer(i32::MIN.into(), i32::MAX.into()),
            "int8" => Family::Integer(i64::MIN, i64::MAX),
            "float4" | "float8" | "numeric" => Family::Number,
            "text" | "varchar" | "bpchar" | "name" | "citext" => Family::Text,
            "bytea" => Family::Bytes,
            "json" | "jsonb" => Family::Json,
            "timestamptz" | "timestamp" | "date" => Family::Time,
            "interval" => Family::Interval,
            _ => Family::Other,
        }
    }

    /// Whether values of this shape can be written there at all.
    fn takes(self, shape: Shape) -> bool {
        match (shape, self) {
            (_, Family::Json | Family::Text) => true,
            (Shape::Raw, Family::Bytes) => true,
            // Row by row: `17` is a number, `x` is none.
            (Shape::Text | Shape::Raw, _) => self != Family::Bytes,
            (Shape::Bool, _) => self == Family::Bool,
            (Shape::Int32 | Shape::Int64 | Shape::Uint64, _) => matches!(self, Family::Integer(..) | Family::Number),
            (Shape::Float | Shape::Double, _) => self == Family::Number,
            (Shape::Bytes, _) => self == Family::Bytes,
            (Shape::Time, _) => self == Family::Time,
            (Shape::Duration, _) => self == Family::Interval,
            (Shape::Json, _) => false,
        }
    }
}

/// A column that is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    name: String,
    family: Family,
    /// Its type's name, as SQL writes it.
    type_name: String,
    not_null: bool,
}

/// A column of the table.
struct Existing {
    target: Target,
    /// The server knows a value where none is written.
    has_default: bool,
    /// Only the server writes it.
    is_generated: bool,
    /// A unique index is about this column alone.
    is_unique: bool,
}

/// What the table's columns are; `None` where there is no table.
async fn existing(client: &Client, table: &str) -> Result<Option<Vec<Existing>>, tokio_postgres::Error> {
    // A type's name without its length (typmod -1): casts to `varchar(3)` cut what is too long, assignments refuse it.
    let columns = "select a.attname::text, pg_catalog.format_type(a.atttypid, -1),
            coalesce(base.typname, t.typname)::text, a.attnotnull or t.typnotnull,
            a.atthasdef or a.attidentity <> '', a.attgenerated <> '' or a.attidentity = 'a',
            exists (select from pg_catalog.pg_index i where i.indrelid = a.attrelid and i.indisunique and i.indisvalid
                and i.indimmediate and i.indpred is null and i.indexprs is null and i.indnkeyatts = 1
                and i.indkey[0] = a.attnum)
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid
        left join pg_catalog.pg_type base on base.oid = t.typbasetype
        where a.attrelid = pg_catalog.to_regclass($1) and a.attnum > 0 and not a.attisdropped
        order by a.attnum";
    let rows = client.query(columns, &[&table]).await?;
    let column = |row: &tokio_postgres::Row| {
        let target = Target {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            family: Family::of(row.try_get(2)?),
            not_null: row.try_get(3)?,
        };
        let (has_default, is_generated, is_unique) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
        Ok(Existing { target, has_default, is_generated, is_unique })
    };
    let columns: Vec<_> = rows.iter().map(column).collect::<Result<_, _>>()?;
    Ok((!columns.is_empty()).then_some(columns))
}

/// The plan's columns as the table has them, in the plan's order.
///
/// # Errors
/// Of the second kind: everything in which the table does not fit.
pub(super) async fn inspect(
    client: &Client,
    plan: &Plan,
) -> Result<Result<Vec<Target>, Vec<String>>, tokio_postgres::Error> {
    let Some(existing) = existing(client, &plan.table).await? else {
        return Ok(Err(vec!["it does not exist".to_owned()]));
    };
    let mut faults = Vec::new();
    let mut targets = Vec::new();
    for (i, Column { name, shape, .. }) in plan.columns.iter().enumerate() {
        let Some(found) = existing.iter().find(|c| c.target.name == *name) else {
            faults.push(format!("column {name} does not exist"));
            continue;
        };
        let type_name = &found.target.type_name;
        if !found.target.family.takes(*shape) {
            faults.push(format!("column {name} is {type_name}, which cannot take {}", shape.name()));
        }
        if found.is_generated {
            faults.push(format!("column {name} is generated by the server and cannot be written"));
        }
        if i == plan.id && !found.is_unique {
            faults.push(format!(
                "column {name} holds the event's id and has no unique index of its own (not partial, not deferrable)"
            ));
        }
        targets.push(found.target.clone());
    }
    for Existing { target, has_default, .. } in &existing {
        if target.not_null && !has_default && plan.columns.iter().all(|c| c.name != target.name) {
            faults.push(format!("column {} is not null, has no default and is not in `columns`", target.name));
        }
    }
    Ok(if faults.is_empty() { Ok(targets) } else { Err(faults) })
}

/// One statement for a batch of any size: an array of text for each column.
pub(super) fn insert(plan: &Plan, targets: &[Target]) -> String {
    let list = |each: &dyn Fn(usize, &Target) -> String| {
        targets.iter().enumerate().map(|(i, target)| each(i + 1, target)).collect::<Vec<_>>().join(", ")
    };
    let value = |n: usize, target: &Target| match target.family {
        // As an assignment, not as a cast: what is too long for the column is refused and not cut.
        Family::Text => format!("c{n}"),
        Family::Bytes => format!("decode(c{n}, 'base64')"),
        _ => format!("c{n}::{}", target.type_name),
    };
    format!(
        "insert into {} ({}) select {} from unnest({}) as r ({}) on conflict ({}) do nothing",
        plan.table,
        list(&|_, target| quoted(&target.name)),
        list(&value),
        list(&|n, _| format!("${n}::text[]")),
        list(&|n, _| format!("c{n}")),
        quoted(&plan.columns[plan.id].name),
    )
}

impl Target {
    /// The value as text for the statement.
    ///
    /// # Errors
    /// When the column cannot hold it.
    pub(super) fn text(&self, value: Datum) -> Result<Option<String>, Failure> {
        let refuse = |why: String| Err(Failure::permanent(format!("column {}: {why}", self.name)));
        let value = match value {
            Datum::Raw(bytes) if self.family == Family::Bytes => return Ok(Some(base64(&bytes))),
            Datum::Raw(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Value::from(text),
                Err(_) => return refuse("not text in UTF-8; a bytea column would take it".to_owned()),
            },
            Datum::Json(value) => value,
        };
        if value.is_null() {
            return if self.not_null { refuse("there is no value, and it is not null".to_owned()) } else { Ok(None) };
        }
        if has_nul(&value) {
            return refuse("a text with a NUL character, which PostgreSQL cannot hold".to_owned());
        }
        let text = match (value, self.family) {
            (value, Family::Json) => value.to_string(),
            (Value::String(text), _) => text,
            // Numbers and booleans; lists, maps and messages as JSON, in a column for text.
            (value, _) => value.to_string(),
        };
        if let Family::Integer(min, max) = self.family {
            match text.parse::<i128>() {
                Ok(n) if (min.into()..=max.into()).contains(&n) => {}
                Ok(n) => return refuse(format!("{n} is out of range for {}", self.type_name)),
                Err(_) => return refuse(format!("not an integer, as {} wants", self.type_name)),
            }
        }
        Ok(Some(text))
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(values) => values.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    impl From<Value> for Datum {
        fn from(value: Value) -> Self {
            Datum::Json(value)
        }
    }

    fn target(type_name: &str, not_null: bool) -> Target {
        Target { name: "c".into(), family: Family::of(type_name), type_name: type_name.into(), not_null }
    }

    #[test]
    fn a_value_is_written_as_its_column_reads_it() {
        #[track_caller]
        fn check(type_name: &str, value: Value, expected: &str) {
            assert_eq!(target(type_name, true).text(Datum::Json(value)), Ok(Some(expected.to_owned())));
        }
        check("text", json!("a'b"), "a'b");
        check("text", json!({ "a": [1] }), r#"{"a":[1]}"#);
        check("jsonb", json!("a"), r#""a""#);
        check("jsonb", json!({ "a": [1] }), r#"{"a":[1]}"#);
        check("int2", json!(-32768), "-32768");
        check("int8", json!("9223372036854775807"), "9223372036854775807");
        check("numeric", json!("18446744073709551615"), "18446744073709551615");
        check("float8", json!("NaN"), "NaN");
        check("float8", json!(0.1), "0.1");
        check("bool", json!(false), "false");
        check("bytea", json!("AAE="), "AAE=");
        assert_eq!(target("text", false).text(Datum::Json(Value::Null)), Ok(None));
        let raw = |type_name, bytes: &[u8]| target(type_name, true).text(Datum::Raw(bytes.to_vec()));
        assert_eq!(raw("bytea", b"abc"), Ok(Some("YWJj".to_owned())), "bytes also where they are text");
        assert_eq!(raw("text", b"abc"), Ok(Some("abc".to_owned())));
    }

    #[test]
    fn a_value_that_its_column_cannot_hold_fails_for_good_and_says_why() {
        #[track_caller]
        fn check(type_name: &str, value: impl Into<Datum>, why: &str) {
            let failure = target(type_name, true).text(value.into()).unwrap_err();
            assert_eq!(failure, Failure::permanent(format!("column c: {why}")));
        }
        check("text", Value::Null, "there is no value, and it is not null");
        check("text", json!("a\0b"), "a text with a NUL character, which PostgreSQL cannot hold");
        check("jsonb", json!({ "a": ["\0"] }), "a text with a NUL character, which PostgreSQL cannot hold");
        check("int2", json!(32768), "32768 is out of range for int2");
        check("int4", json!(4294967295_u32), "4294967295 is out of range for int4");
        check("int8", json!("18446744073709551615"), "18446744073709551615 is out of range for int8");
        check("int8", json!("x"), "not an integer, as int8 wants");
        check("text", Datum::Raw(vec![0xff]), "not text in UTF-8; a bytea column would take it");
    }

    #[test]
    fn types_take_what_can_be_read_from_them_again() {
        #[track_caller]
        fn check(shape: Shape, yes: &[&str], no: &[&str]) {
            for type_name in yes.iter().chain(no) {
                assert_eq!(Family::of(type_name).takes(shape), yes.contains(type_name), "{shape:?} in {type_name}");
            }
        }
        check(Shape::Text, &["text", "varchar", "uuid", "int4", "timestamptz", "my_enum", "jsonb"], &["bytea"]);
        check(Shape::Raw, &["text", "bytea"], &[]);
        check(Shape::Int64, &["int2", "int8", "numeric", "float8", "text"], &["bool", "bytea", "timestamptz", "uuid"]);
        check(Shape::Double, &["float4", "numeric"], &["int8", "interval"]);
        check(Shape::Time, &["timestamptz", "date", "text"], &["int8", "interval"]);
        check(Shape::Duration, &["interval", "text"], &["timestamptz", "int8"]);
        check(Shape::Bytes, &["bytea", "text"], &["uuid", "int8"]);
        check(Shape::Json, &["json", "jsonb", "text"], &["int8", "hstore", "bytea"]);
    }
}
