//! Checks and reads Protobuf bytes in place, without building the message.
//!
//! A [`Plan`] is a message descriptor boiled down to what the wire can break: number, wire type, nesting, UTF-8. One
//! walk over the bytes then costs no allocation for any message, the user's own included.
//! Invariants:
//! - [`Plan::check`] accepts exactly what prost's typed decoders accept (a property test holds the two together), so a
//!   handler that decodes after it cannot meet a surprise.
//! - No input panics, and the nesting is limited as prost limits it.

use std::collections::HashMap;

use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

/// As deep as prost decodes.
const RECURSION_LIMIT: u32 = 100;
/// Field numbers below this are looked up by index, the others by search.
const DENSE: usize = 64;

/// What is wrong with the bytes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes left over when it was found, counted from the end of the payload.
    pub(super) left: usize,
    /// The message (index in the plan) and the field it was found in, when the key could be read.
    pub(super) field: Option<(u32, u32)>,
    /// What it is.
    pub(super) what: &'static str,
}

/// How a field looks on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Varint,
    Fixed32,
    Fixed64,
    String,
    Bytes,
    Message(u32),
    Group(u32),
    Map(u32),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    form: Form,
    packable: bool,
}

#[derive(Clone, Debug)]
struct Shape {
    descriptor: MessageDescriptor,
    dense: Vec<Option<Slot>>,
    sparse: Vec<Slot>,
}

impl Shape {
    fn slot(&self, number: u32) -> Option<Slot> {
        match self.dense.get(number as usize) {
            Some(slot) => *slot,
            None => self.sparse.binary_search_by_key(&number, |s| s.number).ok().map(|i| self.sparse[i]),
        }
    }
}

/// A message and everything it can contain.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    shapes: Vec<Shape>,
}

impl Plan {
    /// The plan of `root`: its own shape is the first.
    pub(super) fn new(root: &MessageDescriptor) -> Self {
        let mut index = HashMap::from([(root.full_name().to_owned(), 0_u32)]);
        let mut queue = vec![root.clone()];
        let mut shapes = Vec::new();
        while let Some(descriptor) = queue.get(shapes.len()).cloned() {
            let mut slots: Vec<Slot> = descriptor
                .fields()
                .map(|field| {
                    let mut shape_of = |m: &MessageDescriptor| {
                        *index.entry(m.full_name().to_owned()).or_insert_with(|| {
                            queue.push(m.clone());
                            (queue.len() - 1) as u32
                        })
                    };
                    let form = match field.kind() {
                        Kind::Message(m) if field.is_map() => Form::Map(shape_of(&m)),
                        Kind::Message(m) if field.is_group() => Form::Group(shape_of(&m)),
                        Kind::Message(m) => Form::Message(shape_of(&m)),
                        Kind::String => Form::String,
                        Kind::Bytes => Form::Bytes,
                        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Form::Fixed64,
                        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Form::Fixed32,
                        _ => Form::Varint,
                    };
                    let scalar = matches!(form, Form::Varint | Form::Fixed32 | Form::Fixed64);
                    Slot {
                        number: field.number(),
                        form,
                        packable: scalar && field.cardinality() == Cardinality::Repeated,
                    }
                })
                .collect();
            slots.sort_by_key(|s| s.number);
            let mut dense = Vec::new();
            let mut sparse = Vec::new();
            for slot in slots {
                let number = slot.number as usize;
                if number < DENSE {
                    dense.resize(number + 1, None);
                    dense[number] = Some(slot);
                } else {
                    sparse.push(slot);
                }
            }
            shapes.push(Shape { descriptor, dense, sparse });
        }
        Self { shapes }
    }

    /// Whether a map can occur anywhere in the message.
    pub(super) fn has_maps(&self) -> bool {
        self.shapes.iter().any(|shape| shape.descriptor.is_map_entry())
    }

    /// Whether `payload` decodes as the message.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), Fault> {
        self.check_message(0, payload, 0, RECURSION_LIMIT)
    }

    /// The names for a fault's field: message and field, or the number where the field is unknown.
    pub(super) fn describe(&self, (shape, number): (u32, u32)) -> String {
        let Some(shape) = self.shapes.get(shape as usize) else {
            return format!("field {number}");
        };
        match shape.descriptor.get_field(number) {
            Some(field) => format!("field {}", field.full_name()),
            None => format!("unknown field {number} of {}", shape.descriptor.full_name()),
        }
    }

    /// `after`: bytes of the payload that follow `bytes`, for the place in a fault.
    fn check_message(&self, shape_index: u32, bytes: &[u8], after: usize, depth: u32) -> Result<(), Fault> {
        let shape = &self.shapes[shape_index as usize];
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = rest.len();
            let (number, wire) = key(&mut rest).map_err(|what| Fault { left: after + before, field: None, what })?;
            self.check_field(shape, (shape_index, number), wire, &mut rest, after, depth)?;
        }
        Ok(())
    }

    fn check_field(
        &self,
        shape: &Shape,
        field: (u32, u32),
        wire: u8,
        rest: &mut &[u8],
        after: usize,
        depth: u32,
    ) -> Result<(), Fault> {
        let left = after + rest.len();
        let fault = |what| Fault { left, field: Some(field), what };
        let Some(slot) = shape.slot(field.1) else {
            return skip(field.1, wire, rest, depth).map_err(fault);
        };
        match (slot.form, wire) {
            (Form::Varint, VARINT) => varint(rest).map(drop).map_err(fault),
            (Form::Fixed32, FIXED32) => take(rest, 4).map(drop).map_err(fault),
            (Form::Fixed64, FIXED64) => take(rest, 8).map(drop).map_err(fault),
            (Form::Bytes, LEN) => delimited(rest).map(drop).map_err(fault),
            (Form::String, LEN) => {
                let text = delimited(rest).map_err(fault)?;
                std::str::from_utf8(text).map(drop).map_err(|_| fault("text that is not UTF-8"))
            }
            (Form::Message(inner), LEN) => self.check_nested(inner, rest, after, depth, fault),
            // prost does not look at the wire type of a map's entry.
            (Form::Map(inner), _) => self.check_nested(inner, rest, after, depth, fault),
            (Form::Group(inner), START_GROUP) => {
                if depth == 0 {
                    return Err(fault(TOO_DEEP));
                }
                let shape = &self.shapes[inner as usize];
                loop {
                    let left = after + rest.len();
                    let (number, wire) = key(rest).map_err(|what| Fault { left, field: Some(field), what })?;
                    if wire == END_GROUP {
                        return if number == field.1 { Ok(()) } else { Err(fault(WRONG_END)) };
                    }
                    self.check_field(shape, (inner, number), wire, rest, after, depth - 1)?;
                }
            }
            (form, LEN) if slot.packable => {
                let mut packed = delimited(rest).map_err(fault)?;
                match form {
                    Form::Fixed32 if packed.len() % 4 != 0 => Err(fault("a packed list cut off")),
                    Form::Fixed64 if packed.len() % 8 != 0 => Err(fault("a packed list cut off")),
                    Form::Varint => {
                        while !packed.is_empty() {
                            varint(&mut packed).map_err(fault)?;
                        }
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            _ => Err(fault("a wire type that its declaration does not have")),
        }
    }

    fn check_nested(
        &self,
        inner: u32,
        rest: &mut &[u8],
        after: usize,
        depth: u32,
        fault: impl Fn(&'static str) -> Fault,
    ) -> Result<(), Fault> {
        if depth == 0 {
            return Err(fault(TOO_DEEP));
        }
        let bytes = delimited(rest).map_err(fault)?;
        self.check_message(inner, bytes, after + rest.len(), depth - 1)
    }
}

/// A path to a singular field that can be written as text: a string, bytes or an integer.
#[derive(Clone, Debug)]
pub(super) struct Path {
    steps: Vec<Step>,
    leaf: Kind,
}

#[derive(Clone, Debug)]
struct Step {
    number: u32,
    /// Other members of its oneof: when one of them comes later on the wire, this one is unset.
    rivals: Vec<u32>,
}

impl Path {
    /// Resolves `path`, dots between levels, by Protobuf or JSON names.
    ///
    /// # Errors
    /// The step that does not resolve, and what would.
    pub(super) fn resolve(root: &MessageDescriptor, path: &str) -> Result<Self, String> {
        let mut message = root.clone();
        let mut steps = Vec::new();
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let field = find_field(&message, name).ok_or_else(|| {
                let known: Vec<_> = message.fields().map(|f| f.name().to_owned()).collect();
                format!("{} has no field `{name}`, its fields are: {}", message.full_name(), known.join(", "))
            })?;
            if field.is_list() || field.is_map() {
                return Err(format!("`{name}` is a list or map, a singular field is needed"));
            }
            let rivals = field.containing_oneof().map_or_else(Vec::new, |oneof| {
                oneof.fields().map(|f| f.number()).filter(|n| *n != field.number()).collect()
            });
            steps.push(Step { number: field.number(), rivals });
            match (field.kind(), names.peek()) {
                (Kind::Message(m), Some(_)) if !field.is_group() => message = m,
                (Kind::Message(m), None) => {
                    return Err(format!("`{name}` is a {}, name a field in it: `{path}.…`", m.full_name()));
                }
                (_, Some(next)) => return Err(format!("`{name}` is no message, so it has no field `{next}`")),
                (Kind::Double | Kind::Float | Kind::Bool | Kind::Enum(_), None) => {
                    return Err(format!(
                        "`{name}` is a {:?}, a string, bytes or integer field is needed",
                        field.kind()
                    ));
                }
                (leaf, None) => return Ok(Self { steps, leaf }),
            }
        }
        Err("an empty field name".to_owned())
    }

    /// The field's text: strings as they are, bytes in hexadecimal, integers in decimal. `None` when it is not set,
    /// empty or zero, or when the payload is broken before its end.
    pub(super) fn text(&self, payload: &[u8]) -> Option<String> {
        let mut found = None;
        walk(&self.steps, payload, &mut found).ok()?;
        match (&self.leaf, found?) {
            (Kind::String, Raw::Bytes(b)) => std::str::from_utf8(b).ok().filter(|s| !s.is_empty()).map(str::to_owned),
            (Kind::Bytes, Raw::Bytes(b)) => (!b.is_empty()).then(|| hex(b)),
            (kind, Raw::Number(n)) => integer(kind, n),
            _ => None,
        }
    }
}

fn integer(kind: &Kind, raw: u64) -> Option<String> {
    let unzigzag = |n: u64| (n >> 1) as i64 ^ -((n & 1) as i64);
    let text = match kind {
        Kind::Int32 | Kind::Sfixed32 => i64::from(raw as i32).to_string(),
        Kind::Sint32 => unzigzag(u64::from(raw as u32)).to_string(),
        Kind::Int64 | Kind::Sfixed64 => (raw as i64).to_string(),
        Kind::Sint64 => unzigzag(raw).to_string(),
        Kind::Uint32 | Kind::Fixed32 => (raw as u32).to_string(),
        Kind::Uint64 | Kind::Fixed64 => raw.to_string(),
        _ => return None,
    };
    (text != "0").then_some(text)
}

#[derive(Clone, Copy)]
enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The last value of the path wins, and occurrences of a message on the way are merged: as decoders do.
fn walk<'a>(steps: &[Step], bytes: &'a [u8], found: &mut Option<Raw<'a>>) -> Result<(), &'static str> {
    let Some((step, deeper)) = steps.split_first() else {
        return Ok(());
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        let (number, wire) = key(&mut rest)?;
        if step.rivals.contains(&number) {
            *found = None;
        }
        if number != step.number {
            skip(number, wire, &mut rest, RECURSION_LIMIT)?;
            continue;
        }
        let raw = match wire {
            VARINT => Raw::Number(varint(&mut rest)?),
            FIXED32 => Raw::Number(little_endian(take(&mut rest, 4)?)),
            FIXED64 => Raw::Number(little_endian(take(&mut rest, 8)?)),
            LEN => Raw::Bytes(delimited(&mut rest)?),
            _ => return Err("a wire type that its declaration does not have"),
        };
        match raw {
            Raw::Bytes(inner) if !deeper.is_empty() => walk(deeper, inner, found)?,
            _ if !deeper.is_empty() => return Err("a wire type that its declaration does not have"),
            raw => *found = Some(raw),
        }
    }
    Ok(())
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// A field by its Protobuf name, else by its JSON name.
pub(super) fn find_field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name))
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

const CUT_OFF: &str = "the bytes end too early";
const TOO_DEEP: &str = "messages nested deeper than 100";
const WRONG_END: &str = "the end of a group that was not begun";

/// A base-128 number of at most 64 bits.
#[inline]
pub(super) fn varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    for (i, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            if i == 9 && byte > 1 {
                return Err("a number of more than 64 bits");
            }
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(if rest.len() < 10 { CUT_OFF } else { "a number of more than 64 bits" })
}

#[inline]
fn key(rest: &mut &[u8]) -> Result<(u32, u8), &'static str> {
    let key = u32::try_from(varint(rest)?).map_err(|_| "a field number above 2^29 - 1")?;
    let wire = (key & 7) as u8;
    match (key >> 3, wire) {
        (0, _) => Err("a field number 0"),
        (_, 6 | 7) => Err("a wire type that does not exist"),
        (number, wire) => Ok((number, wire)),
    }
}

#[inline]
fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], &'static str> {
    let (head, tail) = rest.split_at_checked(n).ok_or(CUT_OFF)?;
    *rest = tail;
    Ok(head)
}

#[inline]
fn delimited<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let n = varint(rest)?;
    take(rest, usize::try_from(n).map_err(|_| CUT_OFF)?)
}

fn skip(number: u32, wire: u8, rest: &mut &[u8], depth: u32) -> Result<(), &'static str> {
    if depth == 0 {
        return Err(TOO_DEEP);
    }
    match wire {
        VARINT => varint(rest).map(drop),
        FIXED64 => take(rest, 8).map(drop),
        LEN => delimited(rest).map(drop),
        FIXED32 => take(rest, 4).map(drop),
        START_GROUP => loop {
            let (inner, wire) = key(rest)?;
            match wire {
                END_GROUP if inner == number => return Ok(()),
                END_GROUP => return Err(WRONG_END),
                _ => skip(inner, wire, rest, depth - 1)?,
            }
        },
        _ => Err(WRONG_END),
    }
}
