//! A source file as the rules see it: its code without comments and without the content of strings.

/// A Rust file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path from the repository's root.
    pub path: String,
    /// Its lines as they are.
    pub lines: Vec<String>,
    /// Its lines without comments and string contents.
    pub code: Vec<String>,
}

impl Source {
    /// Takes the file apart.
    pub fn new(path: &str, text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(String::from).collect();
        let code = lines.iter().map(|line| code_of(line)).collect();
        Self { path: path.into(), lines, code }
    }

    /// The lines before the unit tests at the end of the file.
    pub fn lines_before_tests(&self) -> usize {
        self.code.iter().position(|line| line.starts_with("#[cfg(test)]")).unwrap_or(self.code.len())
    }

    /// Numbers (from 1) of the lines whose code has this word or path.
    pub fn lines_with(&self, word: &str) -> impl Iterator<Item = usize> {
        let numbered = self.code.iter().enumerate();
        let word = word.to_owned();
        numbered.filter(move |(_, line)| has_word(line, &word)).map(|(index, _)| index + 1)
    }
}

/// A line without its comment and without what stands between quotes. A string that goes on over several lines is
/// seen as code from its second line on.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '/' if rest.starts_with('/') => break,
            // The quote as a character: '"'.
            '"' if code.ends_with('\'') && rest.starts_with('\'') => {}
            '"' => rest = after_string(&code, rest),
            _ => code.push(character),
        }
    }
    code
}

/// What follows a string: `code` is what stands before its first quote, `rest` what stands behind it.
fn after_string<'line>(code: &str, rest: &'line str) -> &'line str {
    let before_hashes = code.trim_end_matches('#');
    if before_hashes.ends_with('r') {
        let end = format!("\"{}", &code[before_hashes.len()..]);
        return rest.split_once(&end).map_or("", |(_, after)| after);
    }
    let mut escaped = false;
    for (at, character) in rest.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &rest[at + 1..],
            _ => {}
        }
    }
    ""
}

/// Whether a word (or path such as `std::fs`) stands in the line, and is not the end or beginning of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let begins = !before.is_some_and(|c| part_of_name(c) || c == ':');
        let ends = word.ends_with(':') || !after.is_some_and(part_of_name);
        begins && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(code_of(r#"let a = "unsafe \" // {"; // unsafe"#), "let a = ; ");
        assert_eq!(code_of(r##"f(r#"unsafe " {"#, "b")"##), "f(r#, )");
        assert_eq!(code_of(r#"let quote = '"'; unsafe {"#), "let quote = ''; unsafe {");
    }

    #[test]
    fn a_word_is_not_a_part_of_another() {
        assert!(has_word("use kube::Client;", "kube::"));
        assert!(!has_word("use crate::kube::Assets;", "kube::"));
        assert!(!has_word("mykube::x", "kube::"));
        assert!(has_word("    unsafe {", "unsafe"));
        assert!(!has_word("unsafe_op_in_unsafe_fn", "unsafe"));
        assert!(has_word("std::fs::read(path)", "std::fs"));
    }
}
