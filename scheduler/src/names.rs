//! What renditions are called where a viewer chooses among them.

/// Characters of a name or language that are kept.
const CHARS_MAX: usize = 64;

/// A track's language as a language tag, when it says one.
pub fn language(told: Option<&str>) -> Option<String> {
    let tag = told?;
    let is_tag = (2..=CHARS_MAX).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (is_tag && tag != "und").then(|| tag.to_owned())
}

/// A track's title, else its language, else its number among those of its kind; told apart from those before it.
pub fn unique_name(title: Option<&str>, language: Option<&str>, kind: &str, before: &[&str]) -> String {
    let title = title.map(|title| {
        let printable = title.chars().map(|c| if c.is_control() { ' ' } else { c });
        printable.take(CHARS_MAX).collect::<String>().trim().to_owned()
    });
    let name = title.filter(|title| !title.is_empty()).or_else(|| language.map(str::to_owned));
    let name = name.unwrap_or_else(|| format!("{kind} {}", before.len() + 1));
    let is_free = |name: &String| !before.contains(&name.as_str());
    if is_free(&name) {
        return name;
    }
    // One of so many different names is free.
    (2..=before.len() + 2).map(|number| format!("{name} {number}")).find(is_free).unwrap_or(name)
}
