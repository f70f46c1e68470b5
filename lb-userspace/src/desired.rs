//! What the maps should hold, as a pure function of the model.
