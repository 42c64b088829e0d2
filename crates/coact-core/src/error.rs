//! One error type with three axes: what went wrong, whether to try again, and whether it may have happened.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// The result of every fallible call in coact.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in as many kinds as callers act differently on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong: a name, a limit, an option.
    Invalid,
    /// What the request names does not exist.
    NotFound,
    /// What the request creates exists already.
    AlreadyExists,
    /// Somebody else changed it first.
    Conflict,
    /// The caller's lease or token is over; it must stop acting on it.
    Fenced,
    /// The history asked for is gone; read the state anew.
    Compacted,
    /// The engine cannot do this, or promises less than is needed.
    Unsupported,
    /// The caller may not do this.
    Denied,
    /// A limit of space, rate or number is reached.
    Exhausted,
    /// The engine cannot be reached, or cannot answer now.
    Unavailable,
    /// Stored data is damaged.
    Corrupt,
    /// The handle, engine or node is closed.
    Closed,
    /// A defect in coact.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [ErrorKind; 13] = [
        Self::Invalid,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::Fenced,
        Self::Compacted,
        Self::Unsupported,
        Self::Denied,
        Self::Exhausted,
        Self::Unavailable,
        Self::Corrupt,
        Self::Closed,
        Self::Internal,
    ];

    /// The stable name, as in JSON and in `coact explain NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::Compacted => "compacted",
            Self::Unsupported => "unsupported",
            Self::Denied => "denied",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
            Self::Internal => "internal",
        }
    }

    /// The kind with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The remedy page: what it means, why it happens, what to do (Markdown).
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Invalid => include_str!("../errors/invalid.md"),
            Self::NotFound => include_str!("../errors/not-found.md"),
            Self::AlreadyExists => include_str!("../errors/already-exists.md"),
            Self::Conflict => include_str!("../errors/conflict.md"),
            Self::Fenced => include_str!("../errors/fenced.md"),
            Self::Compacted => include_str!("../errors/compacted.md"),
            Self::Unsupported => include_str!("../errors/unsupported.md"),
            Self::Denied => include_str!("../errors/denied.md"),
            Self::Exhausted => include_str!("../errors/exhausted.md"),
            Self::Unavailable => include_str!("../errors/unavailable.md"),
            Self::Corrupt => include_str!("../errors/corrupt.md"),
            Self::Closed => include_str!("../errors/closed.md"),
            Self::Internal => include_str!("../errors/internal.md"),
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will fail again.
    Never,
    /// The same request may succeed after this pause. Look at the [`Effect`] before you repeat it.
    After(Duration),
}

/// Whether the request may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was changed, and nothing will be.
    NotApplied,
    /// It may or may not have happened: a timeout after the request was sent, a lost connection.
    Unknown,
}

impl Effect {
    /// The stable name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotApplied => "not-applied",
            Self::Unknown => "unknown",
        }
    }
}

/// Any failure of coact: cheap to clone, one line to display.
///
/// `Display` gives the message and the causes below it on one line. [`Error::kind`], [`Error::retry`] and
/// [`Error::effect`] are what programs act on; the text is for people and may change.
#[derive(Clone)]
pub struct Error(Arc<Repr>);

#[derive(Clone)]
struct Repr {
    kind: ErrorKind,
    retry: Retry,
    effect: Effect,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that is final and changed nothing; the builder methods below say otherwise.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let retry = match kind {
            ErrorKind::Unavailable => Retry::After(Duration::from_millis(100)),
            _ => Retry::Never,
        };
        Self(Arc::new(Repr {
            kind,
            retry,
            effect: Effect::NotApplied,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Shorthand for an [`ErrorKind::Invalid`] error.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The same error, whose request may have taken effect.
    #[must_use]
    pub fn effect_unknown(mut self) -> Self {
        Arc::make_mut(&mut self.0).effect = Effect::Unknown;
        self
    }

    /// The same error with this advice on trying again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        Arc::make_mut(&mut self.0).retry = retry;
        self
    }

    /// The same error with one more named detail, shown in brackets after the message.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.0).context.push((name, value.to_string()));
        self
    }

    /// The same error with the lower-level failure that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same request may succeed later.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Whether the request may have taken effect.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// The message without details and causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.context.is_empty() {
            let pairs: Vec<_> = self.0.context.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            write!(f, " ({})", pairs.join(", "))?;
        }
        if self.0.effect == Effect::Unknown {
            f.write_str("; it may have taken effect")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {:?}, effect {})", self, self.0.kind, self.0.retry, self.0.effect.name())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_went_wrong_on_one_line() {
        let error = Error::new(ErrorKind::Unavailable, "no answer within 5s").with("engine", "etcd").effect_unknown();
        assert_eq!(error.to_string(), "no answer within 5s (engine: etcd); it may have taken effect");
        assert_eq!(error.effect(), Effect::Unknown);
        assert!(matches!(error.retry(), Retry::After(_)));
    }

    #[test]
    fn every_kind_has_a_name_and_a_remedy_page() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(kind));
            assert!(kind.remedy().starts_with(&format!("# {}\n", kind.name())), "errors/{}.md", kind.name());
        }
    }
}
