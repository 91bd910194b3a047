//! Tests on a real API server with the CRDs, without the operator.

mod facts;
mod leader;
mod schema;
