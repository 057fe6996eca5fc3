//! Which patterns match a subject: a tree of their parts.
//!
//! `*` stands for exactly one part, a final `>` for one or more; anywhere else, or beside other characters, the
//! two mean nothing and match nothing. Subjects are walked part by part without recursion, so that neither a
//! long subject nor a long pattern costs stack.

use kubemq_runtime::FixedHashMap;

/// Stands for one part.
const ANY: &str = "*";
/// Stands for all parts that follow.
const REST: &str = ">";
/// The place of the tree's root among the nodes.
const ROOT: usize = 0;

/// What is subscribed, by pattern.
#[derive(Debug)]
pub(super) struct Subjects<T> {
    nodes: Vec<Node<T>>,
    /// Places of nodes that are not in the tree.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Node<T> {
    children: FixedHashMap<Box<str>, usize>,
    /// Whose pattern ends here.
    here: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: FixedHashMap::default(), here: Vec::new() }
    }
}

impl<T> Default for Subjects<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new() }
    }
}

impl<T> Subjects<T> {
    /// Adds `value` under `pattern`.
    pub(super) fn insert(&mut self, pattern: &str, value: T) {
        let mut at = ROOT;
        for part in pattern.split('.') {
            at = match self.nodes[at].children.get(part) {
                Some(child) => *child,
                None => self.grow(at, part),
            };
        }
        self.nodes[at].here.push(value);
    }

    fn grow(&mut self, parent: usize, part: &str) -> usize {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.nodes.push(Node::default());
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.insert(part.into(), place);
        place
    }

    /// Removes the first value under `pattern` of which `is_meant` is true, and what of the tree only it used.
    pub(super) fn remove(&mut self, pattern: &str, is_meant: impl Fn(&T) -> bool) -> Option<T> {
        let mut way = vec![(ROOT, "")];
        let mut at = ROOT;
        for part in pattern.split('.') {
            at = *self.nodes[at].children.get(part)?;
            way.push((at, part));
        }
        let place = self.nodes[at].here.iter().position(is_meant)?;
        let removed = self.nodes[at].here.swap_remove(place);
        while let Some((place, part)) = way.pop() {
            let node = &self.nodes[place];
            let Some((parent, _)) = way.last() else { break };
            if !node.here.is_empty() || !node.children.is_empty() {
                break;
            }
            self.nodes[*parent].children.remove(part);
            self.nodes[place] = Node::default();
            self.free.push(place);
        }
        Some(removed)
    }

    /// Shows `found` every value whose pattern matches `subject`.
    pub(super) fn matching<'a>(&'a self, subject: &str, mut found: impl FnMut(&'a T)) {
        let mut reached = vec![ROOT];
        let mut next = Vec::new();
        for part in subject.split('.') {
            for node in reached.drain(..).map(|place| &self.nodes[place]) {
                if let Some(rest) = node.children.get(REST) {
                    self.nodes[*rest].here.iter().for_each(&mut found);
                }
                // A part that is itself a wildcard was said by nobody who may.
                if part != ANY && part != REST {
                    next.extend(node.children.get(part));
                    next.extend(node.children.get(ANY));
                }
            }
            std::mem::swap(&mut reached, &mut next);
            if reached.is_empty() {
                return;
            }
        }
        for place in reached {
            self.nodes[place].here.iter().for_each(&mut found);
        }
    }
}

/// Returns whether `pattern` can match more than the one subject that it spells.
pub(super) fn is_wide(pattern: &str) -> bool {
    pattern.split('.').any(|part| part == ANY || part == REST)
}

#[cfg(test)]
mod tests {
    use kubemq_runtime::Random;

    use super::*;

    fn found(subjects: &Subjects<usize>, subject: &str) -> Vec<usize> {
        let mut all = Vec::new();
        subjects.matching(subject, |value| all.push(*value));
        all.sort_unstable();
        all
    }

    /// Says the rule once more, without a tree.
    fn matches(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, subject @ ..]) => matches(pattern, subject),
            ([one, pattern @ ..], [other, subject @ ..]) => one == other && matches(pattern, subject),
            _ => false,
        }
    }

    #[test]
    fn wildcards_match_what_the_specification_says() {
        let rows = [
            ("a", "a", true),
            ("a", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.*.c", "a.x.c", true),
            ("a.*.c", "a.x.y", false),
            (">", "a.b.c", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("*.>", "a", false),
            ("*.>", "a.b.c", true),
            ("a.>.c", "a.b.c", false),
            ("foo*", "foobar", false),
            ("foo*.>", "foobar.x", false),
            ("a>b", "a.b", false),
        ];
        for (pattern, subject, expected) in rows {
            let mut subjects = Subjects::default();
            subjects.insert(pattern, 1);
            assert_eq!(found(&subjects, subject) == [1], expected, "{pattern} on {subject}");
        }
    }

    #[test]
    fn the_tree_finds_what_comparing_one_by_one_finds() {
        for seed in 0..200 {
            let random = Random::from_seed(seed);
            let pick = |from: &[&str]| from[usize::try_from(random.below(from.len() as u64)).unwrap()].to_owned();
            let path = |parts: &[&str]| {
                let length = 1 + random.below(5);
                (0..length).map(|_| pick(parts)).collect::<Vec<_>>().join(".")
            };
            let mut subjects = Subjects::default();
            let mut all: Vec<(usize, String)> = Vec::new();
            for number in 0..100 {
                if random.below(3) == 0 && !all.is_empty() {
                    let place = usize::try_from(random.below(all.len() as u64)).unwrap();
                    let (id, pattern) = all.swap_remove(place);
                    assert_eq!(subjects.remove(&pattern, |value| *value == id), Some(id));
                } else {
                    let pattern = path(&["a", "b", "c", "*", ">"]);
                    subjects.insert(&pattern, number);
                    all.push((number, pattern));
                }
                let subject = path(&["a", "b", "c"]);
                let parts: Vec<&str> = subject.split('.').collect();
                let mut expected: Vec<usize> = all
                    .iter()
                    .filter(|(_, pattern)| matches(&pattern.split('.').collect::<Vec<_>>(), &parts))
                    .map(|(id, _)| *id)
                    .collect();
                expected.sort_unstable();
                assert_eq!(found(&subjects, &subject), expected, "seed {seed}, subject {subject}, patterns {all:?}");
            }
            for (id, pattern) in all {
                subjects.remove(&pattern, |value| *value == id).unwrap();
            }
            assert_eq!(subjects.nodes.len() - subjects.free.len(), 1, "only the root is left");
        }
    }

    #[test]
    fn long_subjects_cost_no_stack() {
        let long = vec!["a"; 16_000].join(".");
        let mut subjects = Subjects::default();
        subjects.insert(&long, 1);
        subjects.insert(&long.replace('a', "*"), 2);
        assert_eq!(found(&subjects, &long), [1, 2]);
        assert_eq!(subjects.remove(&long, |_| true), Some(1));
        assert_eq!(subjects.remove("nobody.subscribed.this", |_| true), None);
        assert_eq!(found(&subjects, &long), [2]);
    }

    #[test]
    fn only_whole_parts_are_wildcards() {
        for (pattern, wide) in [("a.*", true), (">", true), ("a.>.b", true), ("a*", false), ("a>b.c", false)] {
            assert_eq!(is_wide(pattern), wide, "{pattern}");
        }
    }
}
