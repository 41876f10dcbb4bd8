//! What is compared where others wait for the answer.

/// Equality in a time that does not tell how much of a secret was right.
pub fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same("ab", "ab") && !same("ab", "ac") && !same("a", "ab"));
    }
}
