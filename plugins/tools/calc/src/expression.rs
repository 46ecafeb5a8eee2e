//! The arithmetic: one pass over the text that parses by precedence and evaluates as it goes.
//!
//! Our own, because the libraries at hand either bring a regular-expression engine into a guest whose whole
//! work is microseconds, or are no longer kept, or carry a licence that does not fit.

use std::fmt;

/// Longest expression in bytes. A model's honest question is far shorter.
const MAX_LENGTH: usize = 16 * 1024;

/// Deepest nesting. Each level is a frame of the guest's stack, which holds some thousands.
const MAX_DEPTH: u32 = 200;

/// Why an expression has no value.
#[derive(Debug, PartialEq)]
pub(crate) enum Error {
    /// Over [`MAX_LENGTH`].
    TooLong(usize),
    /// Over [`MAX_DEPTH`].
    TooDeep,
    /// Something else was needed at `at`.
    Expected { what: &'static str, at: usize, found: String },
    /// A name that is neither a constant nor a function.
    UnknownName { name: String, at: usize },
    /// A function that takes another number of arguments.
    Arguments { name: String, takes: &'static str, given: usize, at: usize },
    /// A division or remainder by zero.
    DivisionByZero { at: usize },
    /// The operation at `at` has no finite real result.
    NoResult { operation: String, at: usize },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Positions are counted from 1, as people do.
        match self {
            Self::TooLong(length) => {
                write!(f, "the expression has {length} bytes, over the limit of {MAX_LENGTH}; evaluate it in parts")
            }
            Self::TooDeep => {
                write!(f, "the expression is nested deeper than {MAX_DEPTH} levels; evaluate it in parts")
            }
            Self::Expected { what, at, found } => {
                write!(f, "expected {what} at position {}, found {found}", at + 1)
            }
            Self::UnknownName { name, at } => {
                write!(f, "unknown name `{name}` at position {}; the tool's description lists the functions", at + 1)
            }
            Self::Arguments { name, takes, given, at } => {
                write!(f, "`{name}` at position {} takes {takes}, not {given}", at + 1)
            }
            Self::DivisionByZero { at } => write!(f, "division by zero at position {}", at + 1),
            Self::NoResult { operation, at } => {
                write!(f, "`{operation}` at position {} has no finite real result for its operands", at + 1)
            }
        }
    }
}

/// Evaluates `text`.
pub(crate) fn evaluate(text: &str) -> Result<f64, Error> {
    if text.len() > MAX_LENGTH {
        return Err(Error::TooLong(text.len()));
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    let value = parser.expression(0)?;
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.expected("an operator or the end")),
    }
}

/// Binding powers: a right side is parsed with the power above its operator's, or the same one where the
/// operator groups to the right.
const UNARY_POWER: u8 = 5;

/// The binary operators: power of the left side, of the right side.
fn powers(operator: char) -> Option<(u8, u8)> {
    match operator {
        '+' | '-' => Some((1, 2)),
        '*' | '/' | '%' => Some((3, 4)),
        // Above unary minus, so that -2^2 is -4.
        '^' => Some((7, 6)),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed.chars().next().map(|c| match c {
            // What models and people paste.
            '−' | '–' => '-',
            '×' | '·' => '*',
            '÷' => '/',
            c => c,
        })
    }

    /// The next character as an operator, and its width in the text: `**` is another spelling of `^`.
    fn operator(&mut self) -> Option<(char, usize)> {
        let operator = self.peek()?;
        let rest = &self.text[self.at..];
        if rest.starts_with("**") {
            return Some(('^', 2));
        }
        Some((operator, rest.chars().next().map_or(0, char::len_utf8)))
    }

    /// Steps over the character that `peek` saw.
    fn skip(&mut self) {
        self.at += self.text[self.at..].chars().next().map_or(0, char::len_utf8);
    }

    fn accept(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.skip();
        }
        found
    }

    fn expected(&mut self, what: &'static str) -> Error {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some(c) => format!("`{}`", c.escape_debug()),
        };
        Error::Expected { what, at: self.at, found }
    }

    fn expression(&mut self, min_power: u8) -> Result<f64, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut left = self.operand()?;
        while let Some((operator, width)) = self.operator() {
            let Some((left_power, right_power)) = powers(operator) else {
                break;
            };
            if left_power < min_power {
                break;
            }
            let at = self.at;
            self.at += width;
            let right = self.expression(right_power)?;
            left = apply(operator, left, right, at)?;
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operand(&mut self) -> Result<f64, Error> {
        match self.peek() {
            Some('-') => {
                self.skip();
                Ok(-self.expression(UNARY_POWER)?)
            }
            Some('+') => {
                self.skip();
                self.expression(UNARY_POWER)
            }
            Some('(') => {
                self.skip();
                let value = self.expression(0)?;
                if self.accept(')') { Ok(value) } else { Err(self.expected("an operator or `)`")) }
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_alphabetic() => self.name(),
            _ => Err(self.expected("a number, a name or `(`")),
        }
    }

    fn number(&mut self) -> Result<f64, Error> {
        let rest = &self.text[self.at..];
        let bytes = rest.as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let mut end = digits(0);
        if bytes.get(end) == Some(&b'.') {
            end += 1 + digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits((end + 1 + sign).min(bytes.len()));
            if exponent > 0 {
                end += 1 + sign + exponent;
            }
        }
        let at = self.at;
        let Ok(value) = rest[..end].parse::<f64>() else {
            return Err(self.expected("a number"));
        };
        self.at += end;
        finite(value, &rest[..end], at)
    }

    fn name(&mut self) -> Result<f64, Error> {
        let (at, rest) = (self.at, &self.text[self.at..]);
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = rest[..end].to_lowercase();
        self.at += end;
        if self.accept('(') {
            let arguments = self.arguments()?;
            return call(&name, &arguments, at);
        }
        match name.as_str() {
            "pi" | "π" => Ok(std::f64::consts::PI),
            "tau" | "τ" => Ok(std::f64::consts::TAU),
            "e" => Ok(std::f64::consts::E),
            _ => Err(Error::UnknownName { name, at }),
        }
    }

    fn arguments(&mut self) -> Result<Vec<f64>, Error> {
        let mut values = Vec::new();
        if self.accept(')') {
            return Ok(values);
        }
        loop {
            values.push(self.expression(0)?);
            if self.accept(')') {
                return Ok(values);
            }
            if !self.accept(',') {
                return Err(self.expected("an operator, `,` or `)`"));
            }
        }
    }
}

fn apply(operator: char, left: f64, right: f64, at: usize) -> Result<f64, Error> {
    let divides = matches!(operator, '/' | '%') && right == 0.0;
    if divides || (operator == '^' && left == 0.0 && right < 0.0) {
        return Err(Error::DivisionByZero { at });
    }
    let value = match operator {
        '+' => left + right,
        '-' => left - right,
        '*' => left * right,
        '/' => left / right,
        '%' => left % right,
        _ => left.powf(right),
    };
    finite(value, operator.encode_utf8(&mut [0; 4]), at)
}

fn finite(value: f64, operation: &str, at: usize) -> Result<f64, Error> {
    if value.is_finite() { Ok(value) } else { Err(Error::NoResult { operation: operation.to_owned(), at }) }
}

fn call(name: &str, arguments: &[f64], at: usize) -> Result<f64, Error> {
    let wrong = |takes| Error::Arguments { name: name.to_owned(), takes, given: arguments.len(), at };
    let value = if let Some(function) = unary(name) {
        let [x] = arguments else {
            return Err(wrong("one argument"));
        };
        function(*x)
    } else if let Some(function) = binary(name) {
        let [x, y] = arguments else {
            return Err(wrong("two arguments"));
        };
        if name == "mod" && *y == 0.0 {
            return Err(Error::DivisionByZero { at });
        }
        function(*x, *y)
    } else {
        match (name, arguments) {
            ("log", [x]) => x.log10(),
            ("log", [x, base]) => x.ln() / base.ln(),
            ("log", _) => return Err(wrong("one or two arguments")),
            ("min" | "max" | "sum" | "avg", []) => return Err(wrong("at least one argument")),
            ("min", all) => all.iter().copied().fold(f64::INFINITY, f64::min),
            ("max", all) => all.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ("sum", all) => all.iter().sum(),
            #[allow(clippy::cast_precision_loss, reason = "there are at most as many arguments as bytes of text")]
            ("avg", all) => all.iter().sum::<f64>() / all.len() as f64,
            _ => {
                return Err(Error::UnknownName { name: name.to_owned(), at });
            }
        }
    };
    finite(value, name, at)
}

fn unary(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "sign" => |x| if x == 0.0 { 0.0 } else { x.signum() },
        "sqrt" => f64::sqrt,
        "cbrt" => f64::cbrt,
        "exp" => f64::exp,
        "ln" => f64::ln,
        "log2" => f64::log2,
        "log10" => f64::log10,
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tan" => f64::tan,
        "asin" => f64::asin,
        "acos" => f64::acos,
        "atan" => f64::atan,
        "floor" => f64::floor,
        "ceil" => f64::ceil,
        "round" => f64::round,
        "trunc" => f64::trunc,
        _ => return None,
    })
}

fn binary(name: &str) -> Option<fn(f64, f64) -> f64> {
    Some(match name {
        "pow" => f64::powf,
        "atan2" => f64::atan2,
        "hypot" => f64::hypot,
        "mod" => f64::rem_euclid,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (expression, value) in [
            ("1", 1.0),
            (" 1 + 2 * 3 ", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("10 - 2 - 3", 5.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("2 ** 3", 8.0),
            ("2 ** 3 ** 2", 512.0),
            ("3 * 2 ** 2", 12.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ -1", 0.5),
            ("--2", 2.0),
            ("2 * -3", -6.0),
            ("7 % 4", 3.0),
            ("-7 % 4", -3.0),
            ("mod(-7, 4)", 1.0),
            ("1e3 + .5", 1000.5),
            ("1.", 1.0),
            ("2e", f64::NAN),
            ("sqrt(16) + abs(-2)", 6.0),
            ("max(1, 2, 3) - min(4, 5)", -1.0),
            ("avg(1, 2, 3)", 2.0),
            ("log(1000)", 3.0),
            ("log(8, 2)", 3.0),
            ("ROUND(2.5)", 3.0),
            ("6 × 7 − 2", 40.0),
            ("9007199254740991 + 1", 9_007_199_254_740_992.0),
        ] {
            match evaluate(expression) {
                Ok(found) => assert!((found - value).abs() < 1e-9, "{expression} = {found}"),
                Err(error) => assert!(value.is_nan(), "{expression}: {error}"),
            }
        }
    }

    #[test]
    fn errors_say_what_and_where() {
        for (expression, message) in [
            ("", "expected a number, a name or `(` at position 1, found the end"),
            ("1 +", "expected a number, a name or `(` at position 4, found the end"),
            ("1 + * 2", "at position 5, found `*`"),
            ("(1", "expected an operator or `)` at position 3"),
            ("1)", "expected an operator or the end at position 2, found `)`"),
            ("1 2", "expected an operator or the end"),
            ("1,000 + 1", "found `,`"),
            (".", "expected a number at position 1"),
            ("1 / 0", "division by zero at position 3"),
            ("1 % (2 - 2)", "division by zero at position 3"),
            ("0 ^ -1", "division by zero"),
            ("mod(1, 0)", "division by zero"),
            ("1 / (1 / 0)", "division by zero at position 8"),
            ("sqrt(-1)", "`sqrt` at position 1 has no finite real result"),
            ("ln(0)", "no finite real result"),
            ("10 ^ 400", "`^` at position 4 has no finite"),
            ("1e999", "no finite real result"),
            ("foo(1)", "unknown name `foo` at position 1"),
            ("2 * x", "unknown name `x` at position 5"),
            ("sqrt(1, 2)", "`sqrt` at position 1 takes one argument, not 2"),
            ("max()", "takes at least one argument"),
            ("1 \u{0} 2", "found `\\0`"),
            ("🙂", "found `🙂`"),
        ] {
            match evaluate(expression) {
                Ok(value) => panic!("{expression} gave {value}"),
                Err(error) => assert!(error.to_string().contains(message), "{expression}: {error}"),
            }
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        assert_eq!(evaluate(&"1+".repeat(50_000)), Err(Error::TooLong(100_000)));
        for opening in ["(", "-", "abs(", "2^", "+"] {
            assert_eq!(evaluate(&opening.repeat(4_000)), Err(Error::TooDeep), "{opening}");
        }
        let nested = format!("{}1{}", "(".repeat(100), ")".repeat(100));
        assert_eq!(evaluate(&nested), Ok(1.0));
        let long = format!("{}1", "1+".repeat(8_000));
        assert_eq!(evaluate(&long), Ok(8_001.0));
    }

    #[test]
    fn no_text_makes_it_panic() {
        // A small generator is enough here; its seed is fixed, so a failure repeats.
        let alphabet: Vec<char> = "0123456789.eE+-*/%^(), abcsqrtπ−×\u{0}🙂".chars().collect();
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        for _ in 0..50_000 {
            let mut text = String::new();
            for _ in 0..(seed % 24) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                text.push(alphabet[usize::try_from(seed % alphabet.len() as u64).unwrap()]);
            }
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            if let Ok(value) = evaluate(&text) {
                assert!(value.is_finite(), "{text:?}");
            }
        }
    }
}
