// Before the first paint, so that a chosen theme does not flash. The choice is made in app.js.
try {
  const theme = localStorage.getItem("infinitevl.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {} // storage may be forbidden: then the system's theme it is
