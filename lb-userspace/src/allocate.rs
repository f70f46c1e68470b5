//! Service ids, backend ids and room for rings.
