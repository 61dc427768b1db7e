//! What exists only to be cruel (feature `testing`): for our tests, and for yours.

pub mod faults;
pub mod sim;
