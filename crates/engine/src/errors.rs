//! What an error prints, where each of its variants says one sentence.

/// `Display` and `Error` of an enum without fields.
macro_rules! error_texts {
    ($error:ident { $($variant:ident => $text:literal,)+ }) => {
        impl core::fmt::Display for $error {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self {
                    $($error::$variant => $text,)+
                })
            }
        }
        impl core::error::Error for $error {}
    };
}

/// `?` on what there is no memory for, in a function that fails with `$error`.
macro_rules! from_out_of_memory {
    ($error:ident) => {
        impl From<crate::heap::OutOfMemory> for $error {
            fn from(_: crate::heap::OutOfMemory) -> Self {
                $error::OutOfMemory
            }
        }
    };
}

pub(crate) use {error_texts, from_out_of_memory};
