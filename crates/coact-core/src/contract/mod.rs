//! The contracts: small traits that engines implement and blocks use. One file each; the same names stand in every crate.

pub mod commit;
pub mod kv;
pub mod queue;
pub mod stream;

/// Writes the erased form of a contract, so that blocks need no type parameter. Engine authors never see it.
macro_rules! erased {
    ($erased:ident for $contract:ident { $(fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)+ }) => {
        trait $erased: Send + Sync {
            $(fn $name<'a>(&'a self, $($argument: $type),*) -> futures::future::BoxFuture<'a, $output>;)+
        }

        impl<S: $contract> $erased for S {
            $(fn $name<'a>(&'a self, $($argument: $type),*) -> futures::future::BoxFuture<'a, $output> {
                Box::pin($contract::$name(self, $($argument),*))
            })+
        }
    };
}
pub(crate) use erased;
