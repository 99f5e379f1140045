//! Rows of theta: asked for by number where one request can name them, else picked out of all of it.

use ps_common::Element;
use ps_common::calls::{Form, PullHeader, PullRequest};
use ps_common::codec::Encoding;
use ps_common::rows::Rows;
use ps_common::wire::status::Failure;

use super::client::{Client, ROWS_ASKED_MAX};

/// Fills `values` with these rows of a theta of `dim` elements.
///
/// # Errors
/// As [`Client::pull`].
///
/// # Panics
/// As [`Client::pull_rows`].
pub(super) async fn pull<T: Element>(
    client: &Client,
    request: PullRequest,
    encoding: Encoding,
    rows: &[Rows],
    (dim, values): (usize, &mut [T]),
) -> Result<PullHeader, Failure> {
    let n_rows: usize = rows.iter().map(|of| of.numbers().len()).sum();
    if n_rows <= ROWS_ASKED_MAX {
        return client.pull_rows(encoding, request, rows, values).await;
    }
    // More than one request can name: simpler than several requests, whose answers might be of several
    // versions, and a pull of many rows is rare beside the steps, which may ask for any number.
    let mut theta = vec![T::ZERO; dim];
    let form = Form { encoding, version_have: None };
    let header = client.pull_in(form, request, &mut theta).await?;
    pick(&theta, rows, values);
    Ok(header)
}

/// Copies rows of `theta` to `values`, one after the other.
fn pick<T: Element>(theta: &[T], rows: &[Rows], values: &mut [T]) {
    let mut rest = values;
    for of in rows {
        for key in of.keys() {
            let (row, after) = rest.split_at_mut(of.width());
            row.copy_from_slice(&theta[key..key + of.width()]);
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use ps_common::tables::{Table, Tables};

    use super::*;

    #[test]
    fn rows_are_picked_in_the_order_of_their_naming() {
        let zeros = |name: &str, shape: &[u64]| Table::zeros(name, shape, true);
        let tables = Tables::new(vec![zeros("W", &[3, 2]), zeros("b", &[2])]).expect("valid");
        let of = |table, numbers: &[u32]| Rows::new(&tables, table, numbers.to_vec());
        let rows = [of(0, &[2, 0]).expect("there"), of(1, &[1]).expect("there")];
        let mut picked = [0.0; 5];
        pick(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &rows, &mut picked);
        assert_eq!(picked, [4.0, 5.0, 0.0, 1.0, 7.0]);
    }
}
