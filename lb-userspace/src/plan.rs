//! The changes that lead from what is to what should be, in a safe order.
