//! Random trees, random edits: what the plan leads to is the target, whatever the base was.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// A small tree and what its files hold.
#[derive(Debug, Clone)]
struct Tree {
    index: Index,
    files: BTreeMap<TreePath, Vec<u8>>,
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).expect("a path")
}

fn kind_of(content: &[u8]) -> Kind {
    let leaves = content.chunks(LEAF_BYTES as usize).map(leaf_of).collect();
    Kind::File { size: content.len() as u64, leaves: index::Leaves::new(leaves) }
}

#[derive(Debug, Clone)]
enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    Link(usize),
}

/// Some pieces of few kinds, so that files share content and have zeros; the last may be short.
fn content() -> impl Strategy<Value = Vec<u8>> {
    (proptest::collection::vec(0_u8..3, 0..5), 0_usize..3).prop_map(|(pieces, tail)| {
        let mut content: Vec<u8> =
            pieces.into_iter().flat_map(|byte| std::iter::repeat_n(byte, LEAF_BYTES as usize)).collect();
        content.extend(std::iter::repeat_n(7, tail * 100));
        content
    })
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        2 => Just(Node::Directory),
        5 => content().prop_map(Node::File),
        1 => "[a-c]{1,3}".prop_map(Node::Symlink),
        2 => (0_usize..8).prop_map(Node::Link),
    ]
}

/// Trees over few names: two of them have many paths in common, as other things.
fn tree() -> impl Strategy<Value = Tree> {
    let name = prop_oneof!["[abc]", "[abc]/[ab]", "[abc]/[ab]/[a-]", "[ab]-[ab]", Just("a-b".to_owned()),];
    let attributes = (0_u32..2, 0_u32..3, 0_i64..3);
    (proptest::collection::btree_map(name, (node(), attributes.clone()), 0..10), attributes)
        .prop_map(|(nodes, top)| build(nodes, top))
}

fn build(nodes: BTreeMap<String, (Node, (u32, u32, i64))>, top: (u32, u32, i64)) -> Tree {
    let attributes = |(mode, uid, mtime_ns)| Attributes { mode: 0o600 + mode, uid, gid: uid, mtime_ns };
    let mut tree = Tree { index: Index { top: attributes(top), ..Index::empty() }, files: BTreeMap::new() };
    for (name, (node, own)) in nodes {
        let path = path(&name);
        let parent_holds = path
            .parent()
            .is_none_or(|parent| tree.index.get(&parent).is_some_and(|entry| entry.kind == Kind::Directory));
        if !parent_holds {
            continue;
        }
        let mut own = attributes(own);
        let kind = match node {
            Node::Directory => Kind::Directory,
            Node::File(content) => {
                let kind = kind_of(&content);
                tree.files.insert(path.clone(), content);
                kind
            }
            Node::Symlink(text) => Kind::Symlink { target: text.into_bytes() },
            Node::Link(which) => {
                let Some(to) = tree.files.keys().nth(which).cloned() else { continue };
                own = tree.index.get(&to).expect("it is there").attributes;
                Kind::Link { to }
            }
        };
        tree.index.entries.insert(path, Entry { kind, attributes: own });
    }
    tree
}

fn steps(base: &Index, target: &Tree) -> Vec<Step> {
    let mut steps = Vec::new();
    let content = |path: &TreePath, from: u64, bytes: u64| {
        let (from, bytes) = (usize::try_from(from).expect("small"), usize::try_from(bytes).expect("small"));
        Ok::<_, Infallible>(target.files[path][from..from + bytes].to_vec())
    };
    let Ok(()) = plan(base, &target.index, content, |step| {
        steps.push(step);
        Ok(())
    });
    steps
}

fn advance(base: &Index, steps: &[Step]) -> Index {
    let mut advance = base.clone().advance();
    for step in steps {
        advance.step(step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
    }
    advance.into_index()
}

fn written(steps: &[Step]) -> usize {
    steps.iter().map(|step| if let Step::Write { content, .. } = step { content.len() } else { 0 }).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_planned_leads_to_the_target(base in tree(), target in tree()) {
        let planned = steps(&base.index, &target);
        let reached = advance(&base.index, &planned);
        prop_assert_eq!(&reached, &target.index);
        prop_assert_eq!(reached.root(), target.index.root());
        prop_assert_eq!(steps(&target.index, &target), vec![]);
        for step in &planned {
            let bytes = crate::wire::encode(step);
            prop_assert_eq!(&crate::wire::decode::<Step>(&bytes), &Ok(step.clone()));
        }
        let bytes = crate::wire::encode(&target.index);
        prop_assert_eq!(&crate::wire::decode::<Index>(&bytes), &Ok(target.index));
    }

    #[test]
    fn trees_that_differ_have_roots_that_differ(one in tree(), other in tree()) {
        prop_assert_eq!(one.index == other.index, one.index.root() == other.index.root());
    }

    #[test]
    fn no_bytes_make_the_decoders_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(step) = crate::wire::decode::<Step>(&bytes) {
            let _ = Index::empty().advance().step(&step);
        }
        let _ = crate::wire::decode::<Index>(&bytes);
    }
}

fn tree_of(files: &[(&str, Vec<u8>)]) -> Tree {
    let nodes =
        files.iter().map(|(name, content)| ((*name).to_owned(), (Node::File(content.clone()), (0, 0, 0))));
    build(nodes.collect(), (0, 0, 0))
}

fn pages(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, LEAF_BYTES as usize)).collect()
}

#[test]
fn what_is_sent_is_what_differs() {
    let check = |base: &[(&str, Vec<u8>)], target: &[(&str, Vec<u8>)], pieces: usize| {
        let (base, target) = (tree_of(base), tree_of(target));
        let planned = steps(&base.index, &target);
        assert_eq!(written(&planned), pieces * LEAF_BYTES as usize, "{planned:?}");
        assert_eq!(advance(&base.index, &planned), target.index);
    };
    let big = pages(&(1..60).collect::<Vec<u8>>());
    let changed = |at: usize| {
        let mut content = big.clone();
        content[at * LEAF_BYTES as usize + 9] = 0xaa;
        content
    };
    check(&[("db", big.clone())], &[("db", big.clone())], 0);
    check(&[("db", big.clone())], &[("db", changed(30))], 1);
    check(&[("db", big.clone())], &[("else", big.clone())], 0);
    // Logs in rotation; a file that another takes the place of.
    check(
        &[("log", big.clone()), ("log.1", pages(b"abc"))],
        &[("log", pages(b"x")), ("log.1", big.clone()), ("log.2", pages(b"abc"))],
        1,
    );
    check(&[("db", pages(b"old")), ("db.new", big.clone())], &[("db", big.clone())], 0);
    // A copy beside a file that changes a little takes the place of nothing.
    check(&[("db", big.clone())], &[("db", changed(3)), ("db.bak", big.clone())], 60);
    check(&[], &[("sparse", pages(&[0, 0, 5, 0, 0, 0]))], 1);
    check(&[("f", pages(b"ab"))], &[("f", pages(b"abc"))], 1);
    check(&[("f", pages(b"abc"))], &[("f", pages(b"ab"))], 0);
}

#[test]
fn steps_that_fit_no_tree_are_refused() {
    let base = tree_of(&[("f", pages(b"ab"))]).index;
    let check = |steps: &[Step], expect: &str| {
        let mut advance = base.clone().advance();
        let (last, first) = steps.split_last().expect("some");
        for step in first {
            advance.step(step).expect("it fits");
        }
        let refused = advance.step(last).expect_err("it is refused").to_string();
        assert!(refused.contains(expect), "{refused}");
    };
    let (f, d) = (path("f"), path("d"));
    let link = Step::Symlink { path: d.clone(), target: b"/etc".to_vec() };
    check(&[link, Step::File { path: path("d/passwd"), size: 1 }], "in no directory");
    check(&[Step::File { path: path("f/x"), size: 1 }], "in no directory");
    check(&[Step::Write { path: f.clone(), leaf: 1, content: vec![0; 4_097] }], "past its end");
    check(&[Step::Write { path: f.clone(), leaf: u64::MAX, content: vec![0; 1] }], "past its end");
    check(&[Step::Write { path: f.clone(), leaf: 0, content: vec![0; 5] }], "no whole pieces");
    check(&[Step::File { path: d.clone(), size: u64::MAX }], "larger than they may be");
    check(&[Step::Resize { path: f.clone(), size: u64::MAX }], "larger than they may be");
    check(&[Step::Restore { slot: 0, path: d.clone() }], "it was not kept");
    check(&[Step::Link { path: d.clone(), to: path("absent") }], "no regular file");
    check(&[Step::Directory { path: d.clone() }, Step::Directory { path: d.clone() }], "something is there");
    let inner = Step::Directory { path: path("d/in") };
    check(&[Step::Directory { path: d.clone() }, inner, Step::Remove { path: d.clone() }], "holds something");
    check(&[Step::Remove { path: d }], "it is not there");
    let attributes = Attributes { mode: 0o10_0644, uid: 0, gid: 0, mtime_ns: 0 };
    check(&[Step::Set { path: Some(f), attributes }], "no permissions");
}
