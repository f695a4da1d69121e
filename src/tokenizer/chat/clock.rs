//! `strftime_now`: the date, for templates that tell it to the model.

/// The local time as `format` says. English names whatever the host's locale, as the models were trained with.
pub(super) fn now(format: &str) -> Result<String, String> {
    // SAFETY: `time` takes a null pointer; `localtime_r` fills `parts`, a plain C struct, from a valid pointer.
    let parts = unsafe {
        let seconds = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::localtime_r(&seconds, &mut parts);
        parts
    };
    strftime(format, &parts)
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn strftime(format: &str, parts: &libc::tm) -> Result<String, String> {
    let name = |names: &[&'static str], index: i32| names.get(index as usize).copied().unwrap_or("?");
    let (day, month) = (name(&DAYS, parts.tm_wday), name(&MONTHS, parts.tm_mon));
    let short = |name: &'static str| name.get(..3).unwrap_or(name);
    let hour12 = (parts.tm_hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            text.push(char);
            continue;
        }
        let mut directive = chars.next();
        // `%-d`: without the leading zero.
        let plain = directive == Some('-');
        if plain {
            directive = chars.next();
        }
        let (number, width) = match directive {
            Some('Y') => (1900 + parts.tm_year, 4),
            Some('y') => (parts.tm_year % 100, 2),
            Some('m') => (parts.tm_mon + 1, 2),
            Some('d') => (parts.tm_mday, 2),
            Some('H') => (parts.tm_hour, 2),
            Some('I') => (hour12, 2),
            Some('M') => (parts.tm_min, 2),
            Some('S') => (parts.tm_sec, 2),
            Some('j') => (parts.tm_yday + 1, 3),
            Some(other) => {
                match other {
                    'A' => text.push_str(day),
                    'a' => text.push_str(short(day)),
                    'B' => text.push_str(month),
                    'b' | 'h' => text.push_str(short(month)),
                    'p' => text.push_str(if parts.tm_hour < 12 { "AM" } else { "PM" }),
                    'e' => text.push_str(&format!("{:2}", parts.tm_mday)),
                    'F' => text.push_str(&strftime("%Y-%m-%d", parts)?),
                    'T' => text.push_str(&strftime("%H:%M:%S", parts)?),
                    '%' => text.push('%'),
                    _ => return Err(format!("strftime_now: %{other} is not supported")),
                }
                continue;
            }
            None => return Err("strftime_now: the format ends in %".into()),
        };
        let width = if plain { 0 } else { width };
        text.push_str(&format!("{number:0width$}"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // SAFETY: a plain C struct.
        let mut parts: libc::tm = unsafe { std::mem::zeroed() };
        (parts.tm_year, parts.tm_mon, parts.tm_mday, parts.tm_wday, parts.tm_yday) = (124, 6, 4, 4, 185);
        (parts.tm_hour, parts.tm_min, parts.tm_sec) = (0, 5, 9);
        for (format, expected) in [
            ("%d %b %Y", "04 Jul 2024"),
            ("%A, %B %-d, %y", "Thursday, July 4, 24"),
            ("%F %T %a %e %j %I%p 100%%", "2024-07-04 00:05:09 Thu  4 186 12AM 100%"),
        ] {
            assert_eq!(strftime(format, &parts).as_deref(), Ok(expected));
        }
        assert!(strftime("%Q", &parts).is_err());
        assert!(strftime("%", &parts).is_err());
        assert_eq!(now("%Y").map(|year| year.len()), Ok(4));
    }
}
