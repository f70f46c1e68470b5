//! `shunt cleanup`: takes out what is ours and nothing else.
