//! The level-triggered loop: model changes in, map changes out.
