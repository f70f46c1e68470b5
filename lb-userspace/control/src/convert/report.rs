//! Collects the problems of one object.

use crate::model::{ObjectRef, Origin, Problem, Severity};

/// Problems of one object that are told one by one; more are only counted.
const LIMIT: usize = 10;

/// The problems of one object so far.
pub(super) struct Report<'a> {
    object: ObjectRef,
    origin: Option<&'a Origin>,
    problems: Vec<Problem>,
    more: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(object: ObjectRef, origin: Option<&'a Origin>) -> Self {
        Self { object, origin, problems: Vec::new(), more: 0 }
    }

    pub(super) fn add(&mut self, severity: Severity, field: impl Into<String>, message: impl Into<String>) {
        if self.problems.len() < LIMIT {
            self.problems.push(Problem::of(&self.object, severity, field, message).at(self.origin));
        } else {
            self.more += 1;
        }
    }

    /// Part of the object is not in force.
    pub(super) fn warn(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field, message);
    }

    /// The object is not in force.
    pub(super) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field, message);
    }

    pub(super) fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            let message = format!("{} more problems of the same object are not shown", self.more);
            self.problems.push(Problem::of(&self.object, Severity::Warning, "", message).at(self.origin));
        }
        self.problems
    }
}
