//! Rules of roles: which methods of which services. `x`, `x*`, `*x`, `*x*`, `*`, and with `!` before it a denial, which wins over everything else in the role.
use crate::error::OpError;
use serde::{Deserialize, Serialize};

/// Most rules of a role, and names in each list of one.
const MANY: usize = 64;
/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 128;

/// What services of the SDK begin with, and ours.
const PREFIXES: [&str; 2] = ["openstorage.api.openstorage", "keelblock.admin.v1."];

/// A rule as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRecord {
    /// Patterns of services.
    pub services: Vec<String>,
    /// Patterns of their methods.
    pub apis: Vec<String>,
}

/// A method as rules name it, in small letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    service: String,
    api: String,
}

impl Method {
    /// Of a path of gRPC: `/package.Service/Method`; `None`: it is of another form.
    pub fn of_path(path: &str) -> Option<Self> {
        let (service, api) = path.strip_prefix('/')?.split_once('/')?;
        let service = service.to_ascii_lowercase();
        let short = PREFIXES.iter().find_map(|p| service.strip_prefix(p));
        Some(Self {
            service: short.unwrap_or(&service).to_owned(),
            api: api.to_ascii_lowercase(),
        })
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.service, self.api)
    }
}

/// Whether a pattern without `!` is of this name, which is in small letters.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let (anything_before, rest) = match pattern.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, pattern.as_str()),
    };
    let (anything_behind, word) = match rest.strip_suffix('*') {
        Some(word) => (true, word),
        None => (false, rest),
    };
    match (anything_before, anything_behind) {
        (true, true) => name.contains(word),
        (true, false) => name.ends_with(word),
        (false, true) => name.starts_with(word),
        (false, false) => name == word,
    }
}

/// Whether one of the patterns allows it.
fn has(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|p| matches(p, name))
}

/// Whether one of the patterns denies it.
fn denies(patterns: &[String], name: &str) -> bool {
    let mut denials = patterns.iter().filter_map(|p| p.strip_prefix('!'));
    denials.any(|p| matches(p, name))
}

/// Whether these rules of one role allow the method.
pub fn allow(rules: &[RuleRecord], method: &Method) -> bool {
    let (service, api) = (&method.service, &method.api);
    let denied = |r: &RuleRecord| {
        denies(&r.services, service) || (has(&r.services, service) && denies(&r.apis, api))
    };
    let allowed = |r: &RuleRecord| has(&r.services, service) && has(&r.apis, api);
    !rules.iter().any(denied) && rules.iter().any(allowed)
}

/// That these can be the rules of a role.
///
/// # Errors
/// [`OpError::Missing`], [`OpError::Invalid`] with the field.
pub fn check(rules: &[RuleRecord]) -> Result<(), OpError> {
    if rules.is_empty() {
        return Err(OpError::Missing {
            field: "role.rules",
            hint: "at least one, with services and apis; !* in both is nothing",
        });
    }
    let many = |field: String, n: usize| match n {
        0 => Err(OpError::invalid(field, "has none: `*` is all")),
        n if n > MANY => Err(OpError::invalid(field, format!("has {n}, at most {MANY}"))),
        _ => Ok(()),
    };
    many("role.rules".into(), rules.len())?;
    for (index, rule) in rules.iter().enumerate() {
        for (name, patterns) in [("services", &rule.services), ("apis", &rule.apis)] {
            let field = format!("role.rules[{index}].{name}");
            many(field.clone(), patterns.len())?;
            if let Some(pattern) = patterns.iter().find(|p| !is_pattern(p)) {
                let shown: String = pattern.escape_debug().take(PATTERN_BYTES_MAX).collect();
                let why = format!(
                    "has `{shown}`: write a name, `name*`, `*name`, `*name*` or `*`, and `!` before it to deny"
                );
                return Err(OpError::invalid(field, why));
            }
        }
    }
    Ok(())
}

fn is_pattern(text: &str) -> bool {
    let bare = text.strip_prefix('!').unwrap_or(text);
    let rest = bare.strip_prefix('*').unwrap_or(bare);
    let word = rest.strip_suffix('*').unwrap_or(rest);
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let long = text.len() > PATTERN_BYTES_MAX;
    !long && !bare.is_empty() && word.chars().all(of_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(services: &[&str], apis: &[&str]) -> RuleRecord {
        let all = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        RuleRecord {
            services: all(services),
            apis: all(apis),
        }
    }

    fn method(text: &str) -> Method {
        Method::of_path(&format!("/openstorage.api.OpenStorage{text}")).unwrap()
    }

    #[test]
    fn services_are_named_as_in_the_sdk() {
        assert_eq!(
            method("SchedulePolicy/EnumerateWithFilters").to_string(),
            "schedulepolicy.enumeratewithfilters"
        );
        let of = |path| Method::of_path(path).map(|m| m.to_string());
        assert_eq!(
            of("/keelblock.admin.v1.Admin/NodeStatus").as_deref(),
            Some("admin.nodestatus")
        );
        assert_eq!(
            of("/grpc.Health/Check").as_deref(),
            Some("grpc.health.check")
        );
        assert_eq!(of("/nothing"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn patterns_begin_end_or_have_it_in_them() {
        for (pattern, name, is) in [
            ("volume", "volume", true),
            ("Volume", "volume", true),
            ("volume", "volumes", false),
            ("", "volume", false),
            ("*", "volume", true),
            ("**", "volume", true),
            ("vol*", "volume", true),
            ("vol*", "avolume", false),
            ("*ume", "volume", true),
            ("*ume", "volumes", false),
            ("*lum*", "volume", true),
            ("*mul*", "volume", false),
            ("!volume", "volume", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn denial_wins_wherever_it_is_written() {
        let create = method("Volume/Create");
        for (rules, is) in [
            (vec![rule(&["*"], &["!create"])], false),
            (vec![rule(&["!volume"], &["*"])], false),
            (vec![rule(&["volume"], &["*", "!create"])], false),
            (vec![rule(&["volume"], &["!Create", "*"])], false),
            (vec![rule(&["volume"], &["!*", "create"])], false),
            (vec![rule(&["*", "!*"], &["*"])], false),
            (vec![rule(&["!*"], &["!*"])], false),
            (vec![rule(&["volume"], &["*"])], true),
            (vec![rule(&["*"], &["*", "!delete"])], true),
            // A denial is of the services of its rule, a denied service of the whole role.
            (
                vec![rule(&["*"], &["*"]), rule(&["node"], &["!create"])],
                true,
            ),
            (
                vec![rule(&["*"], &["*"]), rule(&["vol*"], &["!cre*"])],
                false,
            ),
            (
                vec![rule(&["*"], &["*"]), rule(&["!volume"], &["x"])],
                false,
            ),
            (vec![rule(&["node"], &["*"])], false),
            (vec![], false),
        ] {
            assert_eq!(allow(&rules, &create), is, "{rules:?}");
        }
    }

    #[test]
    fn what_can_be_no_rule_is_named() {
        let refused = |rules: &[RuleRecord]| check(rules).unwrap_err().to_string();
        assert!(refused(&[]).starts_with("role.rules"));
        assert!(refused(&[rule(&[], &["*"])]).starts_with("role.rules[0].services"));
        let second = [rule(&["*"], &["*"]), rule(&["*"], &[])];
        assert!(refused(&second).starts_with("role.rules[1].apis"));
        for bad in ["", "!", "a*b", "*a*b*", "a b", "!!a", "ü", "a/b", "***"] {
            let error = refused(&[rule(&[bad], &["*"])]);
            assert!(error.contains("write a name"), "{bad}: {error}");
        }
        let long = "x".repeat(200);
        assert!(check(&[rule(&[&long], &["*"])]).is_err());
        assert!(check(&vec![rule(&["*"], &["*"]); 65]).is_err());
        for good in ["*", "**", "!*", "!a*", "*a*", "Volume", "grpc.health.v1"] {
            check(&[rule(&[good], &[good])]).unwrap();
        }
    }

    proptest! {
        /// The same as what the words say, by trying every way to fill in the stars.
        #[test]
        fn stars_are_anything(name in "[ab]{0,6}", word in "[ab]{0,3}", before: bool, behind: bool) {
            let pattern = format!("{}{word}{}", if before { "*" } else { "" }, if behind { "*" } else { "" });
            let filled = (0..=name.len()).any(|from| {
                (from..=name.len()).any(|to| {
                    name[from..to] == word && (before || from == 0) && (behind || to == name.len())
                })
            });
            prop_assert_eq!(matches(&pattern, &name), filled);
            prop_assert_eq!(denies(&[format!("!{pattern}")], &name), filled);
            prop_assert!(pattern.is_empty() || is_pattern(&pattern));
        }

        /// More denials never allow more, and nothing is allowed that no rule names.
        #[test]
        fn a_denial_more_never_allows_more(
            texts in prop::collection::vec(prop::collection::vec("!?\\*?[ab]{0,2}\\*?", 1..3), 2..8),
            service in "[ab]{0,3}", api in "[ab]{0,3}", at in 0usize..8, in_services: bool,
        ) {
            let pairs = texts.chunks_exact(2);
            let mut rules: Vec<_> = pairs.map(|p| RuleRecord { services: p[0].clone(), apis: p[1].clone() }).collect();
            let method = Method { service: service.clone(), api: api.clone() };
            let before = allow(&rules, &method);
            let named = rules.iter().any(|r| has(&r.services, &service) && has(&r.apis, &api));
            prop_assert!(!before || named);
            let at = at % rules.len();
            match in_services {
                true => rules[at].services.push(format!("!{service}")),
                false => rules[at].apis.push(format!("!{api}")),
            }
            prop_assert!(!allow(&rules, &method) || before);
            if in_services || (before && has(&rules[at].services, &service)) {
                prop_assert!(!allow(&rules, &method));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", name in "[a-z]{0,10}") {
            let rules = [rule(&[&text], &[&text])];
            let _ = check(&rules);
            let method = Method { service: name.clone(), api: name };
            let allowed = allow(&rules, &method);
            prop_assert!(!allowed || text.is_ascii());
        }
    }
}
