// The broker's own identity: user-assigned, so that its roles are there before the first revision starts.

@description('Region.')
param location string

@description('Tags of every resource.')
param tags object

// https://learn.microsoft.com/azure/templates/microsoft.managedidentity/2024-11-30/userassignedidentities
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-${uniqueString(resourceGroup().id)}'
  location: location
  tags: tags
}

@description('Name, which is also its user name in PostgreSQL.')
output name string = identity.name

@description('Object id, for role assignments.')
output principalId string = identity.properties.principalId
