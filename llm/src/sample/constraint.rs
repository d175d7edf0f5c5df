//! What a text must match: the hook for grammars.

/// A set of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet(Vec<u64>);

impl TokenSet {
    /// No token of `vocab`.
    pub fn empty(vocab: usize) -> TokenSet {
        TokenSet(vec![0; vocab.div_ceil(64)])
    }

    /// Adds a token; one outside the vocabulary is left out.
    pub fn insert(&mut self, token: u32) {
        if let Some(word) = self.0.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: u32) -> bool {
        self.0.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// The words of 64 tokens, the lowest bit first.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

/// What a text must match, token by token.
pub trait Constraint: Send {
    /// The tokens that may come next; those that end a text among them, when it may end.
    ///
    /// # Errors
    /// Why none can be named.
    fn allowed(&mut self) -> Result<&TokenSet, String>;

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// When it was not allowed.
    fn accept(&mut self, token: u32) -> Result<(), String>;
}
