//! Methods as Ruby calls them, by magnus: it checks what a function takes by its type, stops panics, and raises only when
//! every frame of ours is gone.

/// Defines a singleton method that takes its arguments as they are: `function!(class, "name", 1..=2, body)`.
macro_rules! function {
    ($class:expr, $name:literal, $expected:expr, $body:path) => {
        magnus::Object::define_singleton_method(
            $class,
            $name,
            magnus::method!(
                |_this: $crate::ruby::Value,
                 arguments: &[magnus::Value]|
                 -> $crate::ruby::Outcome {
                    $body($crate::ruby::arguments::Arguments::of(
                        arguments, $expected,
                    )?)
                },
                -1
            ),
        )?
    };
}
pub(crate) use function;
