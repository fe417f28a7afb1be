// Package inert makes text from an agent safe and honest for a person to look at.
//
// An agent chooses the names, commands, manifests and reasons a person decides
// about, and it may want to be misread. A terminal obeys control characters (clear
// the screen, go back to the start of the line, write to the clipboard), draws
// bidirectional overrides in another order than they are stored, shows nothing at
// all for some characters, and shows others exactly like a Latin letter.
//
// Whatever is not a plain visible character is written as an escape: \x1b for one
// byte, \u202e or \U000e0041 for a character. A backslash that stands before
// something that could be taken for such an escape is doubled, so that two
// different texts never look the same. What would be visible but misleading, a word
// of letters of several scripts, is left as it is and named by [Suspicious].
//
// What a program printed to a terminal is shown as it looked, by [Screen], without
// anything a terminal would act on.
//
// Nothing fails: any sequence of bytes has an inert form, and empty stays empty.
package inert
