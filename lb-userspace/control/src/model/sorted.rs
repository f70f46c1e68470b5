//! What two sorted lists have apart from each other.

use std::cmp::Ordering;

/// What `before` alone has, and what `after` alone has, both sorted and without doubles. One look at each entry: lists of a node's
/// addresses are long, and change by one.
pub fn changes<T: Ord + Copy>(
    before: impl IntoIterator<Item = T>,
    after: impl IntoIterator<Item = T>,
) -> (Vec<T>, Vec<T>) {
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(old), Some(other)) => old.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return (gone, new),
        };
        match order {
            Ordering::Less => gone.extend(before.next()),
            Ordering::Greater => new.extend(after.next()),
            Ordering::Equal => {
                before.next();
                after.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_what_the_other_lacks() {
        let of = |before: &[u8], after: &[u8]| changes(before.iter().copied(), after.iter().copied());
        assert_eq!(of(&[1, 2, 4], &[2, 3, 4, 5]), (vec![1], vec![3, 5]));
        assert_eq!(of(&[], &[1]), (vec![], vec![1]));
        assert_eq!(of(&[1, 2], &[]), (vec![1, 2], vec![]));
        assert_eq!(of(&[7], &[7]), (vec![], vec![]));
    }
}
