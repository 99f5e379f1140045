//! A graph from a file: one edge a line, two ranks apart by blanks; `#` begins a comment.
//!
//! An edge may be written in either direction, but only once.

use std::collections::HashMap;
use std::path::Path;

use ps_common::exit::{Exit, ExitError};

use super::graph::Graph;

/// Reads the graph of `n_peers` in `path`.
///
/// # Errors
/// Bad data: the file cannot be read, or a line is no edge; file and line are named.
pub fn read(path: &Path, n_peers: u32) -> Result<Graph, ExitError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let what = format!("{}: cannot be read (--graph)", path.display());
        ExitError::new(Exit::BadData, what).because(e)
    })?;
    parse(&text, &path.display().to_string(), n_peers)
}

/// The graph that `text` says; `name` is the file's, for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, name: &str, n_peers: u32) -> Result<Graph, ExitError> {
    let mut seen: HashMap<(u32, u32), usize> = HashMap::new();
    for (line, content) in (1..).zip(text.lines()) {
        let bad = |what: String| ExitError::new(Exit::BadData, format!("{name}:{line}: {what}"));
        let content = content.split('#').next().unwrap_or_default();
        let tokens: Vec<&str> = content.split_whitespace().collect();
        let [a, b] = tokens[..] else {
            if tokens.is_empty() {
                continue;
            }
            return Err(bad(format!(
                "expected two ranks, such as `0 1`, not `{}`",
                content.trim()
            )));
        };
        let (a, b) = (rank(a, n_peers).map_err(bad)?, rank(b, n_peers).map_err(bad)?);
        if a == b {
            return Err(bad(format!("an edge from {a} to itself: every peer has its own theta")));
        }
        if let Some(first) = seen.insert((a.min(b), a.max(b)), line) {
            return Err(bad(format!("the edge {a} {b} is in line {first} already")));
        }
    }
    Ok(Graph::of_edges(n_peers, seen.into_keys()))
}

fn rank(token: &str, n_peers: u32) -> Result<u32, String> {
    match token.parse::<u64>() {
        Ok(rank) if rank < u64::from(n_peers) => Ok(u32::try_from(rank).expect("below a u32")),
        Ok(rank) => Err(format!(
            "there is no rank {rank}: {n_peers} peers (--workers) have the ranks 0 to {}",
            i64::from(n_peers) - 1
        )),
        Err(_) => Err(format!("`{token}` is not a rank, a whole number from 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_comments_and_blank_lines() {
        let text = "# a ring\n0 1\n\n 1\t2 # and on\r\n2 3\n0 3";
        let graph = parse(text, "ring.txt", 4).expect("good");
        assert_eq!(graph, Graph::of_edges(4, [(0, 1), (1, 2), (2, 3), (3, 0)]));
        assert_eq!(parse("", "none.txt", 3).expect("three parts").components().len(), 3);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, says) in [
            ("0 1\n1 4\n", "g:2: there is no rank 4: 4 peers (--workers) have the ranks 0 to 3"),
            ("0 99999999999", "g:1: there is no rank 99999999999"),
            ("\n2 2", "g:2: an edge from 2 to itself"),
            ("0 1\n# x\n1 0", "g:3: the edge 1 0 is in line 1 already"),
            ("0 1 0.5", "g:1: expected two ranks, such as `0 1`, not `0 1 0.5`"),
            ("0", "g:1: expected two ranks"),
            ("0,1 2", "g:1: `0,1` is not a rank"),
            ("-1 2", "g:1: `-1` is not a rank"),
        ] {
            let error = parse(text, "g", 4).expect_err(says);
            assert!(error.exit == Exit::BadData && error.message.starts_with(says), "{error}");
        }
        let error = read(Path::new("/no/such/graph"), 2).expect_err("no file");
        assert!(error.exit == Exit::BadData && error.message.contains("--graph"), "{error}");
    }
}
