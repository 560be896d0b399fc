//! Names of the columns of a schema, without the groups that only lists need.

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::corpus::columns::ColumnKind;
use crate::corpus::error::CorpusError;

/// Columns shown in a message.
const SHOWN_COLUMNS: usize = 24;

/// One column.
#[derive(Debug)]
struct Leaf {
    name: String,
    physical: PhysicalType,
    is_text: bool,
    /// Number of lists that its values are in.
    lists: i16,
}

/// Columns of a file, in the order of its schema.
#[derive(Debug)]
pub(super) struct Schema {
    leaves: Vec<Leaf>,
}

/// Returns whether a group is a list of the usual three levels.
fn is_list(group: &Type) -> bool {
    let info = group.get_basic_info();
    let annotated =
        matches!(info.logical_type_ref(), Some(LogicalType::List)) || info.converted_type() == ConvertedType::LIST;
    annotated && group.is_group() && group.get_fields().len() == 1
}

/// Lists the columns below a node. `names` is the path to it.
fn collect(node: &Type, names: &mut Vec<String>, found: &mut Vec<String>) {
    if !node.is_group() {
        found.push(names.join("."));
        return;
    }
    if is_list(node) {
        let repeated = &node.get_fields()[0];
        // A repeated group with one field is the list itself; otherwise it is the element.
        if repeated.is_group() && repeated.get_fields().len() == 1 {
            let element = &repeated.get_fields()[0];
            collect(element, names, found);
        } else {
            collect(repeated, names, found);
        }
        return;
    }
    for field in node.get_fields() {
        names.push(field.name().to_owned());
        collect(field, names, found);
        names.pop();
    }
}

impl Schema {
    pub(super) fn new(schema: &SchemaDescriptor) -> Self {
        let mut names = Vec::new();
        collect(schema.root_schema(), &mut Vec::new(), &mut names);
        let leaf = |(name, column): (String, &parquet::schema::types::ColumnDescPtr)| Leaf {
            name,
            physical: column.physical_type(),
            is_text: matches!(column.logical_type_ref(), Some(LogicalType::String | LogicalType::Json))
                || column.converted_type() == ConvertedType::UTF8,
            lists: column.max_rep_level(),
        };
        Self { leaves: names.into_iter().zip(schema.columns()).map(leaf).collect() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    pub(super) fn name(&self, leaf: usize) -> &str {
        self.leaves.get(leaf).map_or("", |leaf| &leaf.name)
    }

    pub(super) fn is_text(&self, leaf: usize) -> bool {
        self.leaves.get(leaf).is_some_and(|leaf| leaf.is_text)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.leaves.iter().position(|leaf| leaf.name == name)
    }

    /// Finds the name of a column by its kind: the one that the configuration names, or the first usual one.
    pub(super) fn find(&self, file: &str, kind: ColumnKind, set: Option<&str>) -> Result<String, CorpusError> {
        // A configured group of an image, such as `image`, means its bytes.
        let inner = set.filter(|name| kind == ColumnKind::Image && !self.has(name)).map(|name| format!("{name}.bytes"));
        let set = inner.as_deref().filter(|name| self.has(name)).or(set);
        kind.find(file, set, |name| self.has(name), || self.list_names())
    }

    /// Returns the position of a column, whose type must suit its kind.
    pub(super) fn require(&self, file: &str, kind: ColumnKind, name: &str) -> Result<usize, CorpusError> {
        let wrong = |found: String, expected| CorpusError::WrongColumnType {
            file: file.to_owned(),
            column: name.to_owned(),
            found,
            expected,
            key: kind.key(),
        };
        let Some((position, leaf)) = self.leaves.iter().enumerate().find(|(_, leaf)| leaf.name == name) else {
            return Err(wrong("nothing".to_owned(), "a column"));
        };
        let numbers = [PhysicalType::INT32, PhysicalType::INT64];
        let (allowed, lists, expected) = match kind {
            ColumnKind::Image => (vec![PhysicalType::BYTE_ARRAY], 0..=0, "bytes or base64 text, not in a list,"),
            ColumnKind::ImageUrl | ColumnKind::PairUrl => {
                ([&[PhysicalType::BYTE_ARRAY], &numbers[..]].concat(), 0..=0, "text or a whole number, not in a list,")
            }
            ColumnKind::Caption | ColumnKind::Language => {
                ([&[PhysicalType::BYTE_ARRAY], &numbers[..]].concat(), 0..=1, "text, or a list of texts,")
            }
        };
        if !allowed.contains(&leaf.physical) {
            return Err(wrong(format!("values of type {}", leaf.physical), expected));
        }
        if !lists.contains(&leaf.lists) {
            return Err(wrong(format!("lists, {} levels deep", leaf.lists), expected));
        }
        Ok(position)
    }

    fn list_names(&self) -> String {
        let shown: Vec<String> =
            self.leaves.iter().take(SHOWN_COLUMNS).map(|leaf| format!("`{}`", leaf.name)).collect();
        let rest = self.leaves.len() - shown.len();
        if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn lists_of_all_writers_have_plain_names() {
        let message = "message schema {
            optional group image { optional binary bytes; optional binary path (STRING); }
            optional group of_structs (LIST) { repeated group list { optional group element { optional binary a (STRING); } } }
            optional group of_lists { optional group b (LIST) { repeated group list { optional binary item (STRING); } } }
            optional group bag (LIST) { repeated group bag { optional int64 array_element; } }
            optional group two_levels (LIST) { repeated binary array (STRING); }
            optional group pairs (LIST) { repeated group array { optional binary k; optional binary v; } }
            required int32 label;
        }";
        let schema = Schema::new(&SchemaDescriptor::new(std::sync::Arc::new(parse_message_type(message).unwrap())));
        let names: Vec<&str> = schema.leaves.iter().map(|leaf| leaf.name.as_str()).collect();
        let expected = [
            "image.bytes",
            "image.path",
            "of_structs.a",
            "of_lists.b",
            "bag",
            "two_levels",
            "pairs.k",
            "pairs.v",
            "label",
        ];
        assert_eq!(names, expected);
        let require = |kind, name: &str| schema.require("f", kind, name).map_err(|error| error.to_string());
        assert_eq!(require(ColumnKind::Image, "image.bytes"), Ok(0));
        assert_eq!(schema.find("f", ColumnKind::Image, Some("image")).unwrap(), "image.bytes");
        assert_eq!(require(ColumnKind::Caption, "of_lists.b"), Ok(3));
        assert!(require(ColumnKind::Image, "label").unwrap_err().contains("holds values of type INT32, but bytes"));
        assert!(require(ColumnKind::ImageUrl, "bag").unwrap_err().contains("holds lists, 1 levels deep"));
    }
}
