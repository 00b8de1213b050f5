// The API docs, drawn by Swagger UI from the service's own description.

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // the stock one asks a server elsewhere
});
